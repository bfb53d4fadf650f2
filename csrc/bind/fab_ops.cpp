// FAB's operator: schema, checks at the boundary, and the way to fab.h.
#include "../fab.h"

#include "device.h"
#include "ops.h"

namespace fastard {
namespace {

void require_images(const Tensor& t, const Tensor& at, const char* name) {
  const std::string who = name;
  require(t.same_shape(at) && t.same_layout(at), who + " must have at's shape and layout.");
  require(t.dtype() == at.dtype(), who + " must have at's dtype.");
}
void require_rows(const Tensor& t, const Tensor& at, int32_t dtype, const char* name) {
  require(t.numel() == at.sizes()[0] && t.contiguous() && t.dtype() == dtype,
          std::string(name) + " must hold one value per sample, contiguous, of the right dtype.");
}

// at, best, size, tests, trying, x, grad, gap, fooled, norm, n_iter, limit, alpha_max, eta, beta,
// clip_min, clip_max
template <class Device> void fab_step(StableIValue* s, uint64_t, uint64_t) {
  Tensor at = Tensor::required(s[0]), best = Tensor::required(s[1]), size = Tensor::required(s[2]);
  Tensor tests = Tensor::required(s[3]), trying = Tensor::required(s[4]);
  Tensor x = Tensor::required(s[5]), grad = Tensor::optional(s[6]), gap = Tensor::optional(s[7]);
  Tensor fooled = Tensor::required(s[8]);
  require(at.dim() >= 1 && at.dense_samples(),
          "at must be dense with samples outermost (contiguous or channels_last).");
  FabArgs a = {};
  a.x_type = at.type("at");
  require(a.x_type == kF32 || a.x_type == kF64, "at must be float32 or float64.");
  require_images(best, at, "best");
  require_images(x, at, "x");
  require(!grad == !gap, "grad and gap go together.");
  if (grad) require_images(grad, at, "grad");
  require_rows(size, at, at.dtype(), "size");
  if (gap) require_rows(gap, at, at.dtype(), "gap");
  require_rows(tests, at, aoti_torch_dtype_int32(), "tests");
  require_rows(trying, at, aoti_torch_dtype_bool(), "trying");
  require_rows(fooled, at, aoti_torch_dtype_bool(), "fooled");
  for (const Tensor* t : {&best, &size, &tests, &trying, &x, &grad, &gap, &fooled})
    require(!*t || (t->device_type() == at.device_type() && t->device_index() == at.device_index()),
            "all tensors must be on at's device.");
  const int64_t norm = decode<int64_t>(s[9]);
  require(norm >= kLinf && norm <= kL1, "norm is not a known code.");
  a.norm = int(norm);
  a.batch = at.sizes()[0];
  a.n = a.batch ? at.numel() / a.batch : 0;
  a.n_iter = decode<int64_t>(s[10]);
  a.limit = decode<double>(s[11]);
  a.alpha_max = decode<double>(s[12]);
  a.eta = decode<double>(s[13]);
  a.beta = decode<double>(s[14]);
  a.clip_min = decode<double>(s[15]);
  a.clip_max = decode<double>(s[16]);
  a.x = x.data();
  a.grad = grad.data();
  a.gap = gap.data();
  a.fooled = static_cast<const uint8_t*>(fooled.data());
  a.at = at.mutable_data();
  a.best = best.mutable_data();
  a.size = size.mutable_data();
  a.tests = static_cast<int32_t*>(tests.mutable_data());
  a.trying = static_cast<uint8_t*>(trying.mutable_data());
  if (at.numel()) Device(at).fab(a);
}

}  // namespace

void define_fab_ops(TorchLibraryHandle lib) {
  define(lib,
         "fab_step_(Tensor(a!) at, Tensor(b!) best, Tensor(c!) size, Tensor(d!) tests, "
         "Tensor(e!) trying, Tensor x, Tensor? grad, Tensor? gap, Tensor fooled, int norm, "
         "int n_iter, float limit, float alpha_max, float eta, float beta, float clip_min, "
         "float clip_max) -> ()");
}
void implement_fab_ops_cpu(TorchLibraryHandle lib) { implement(lib, "fab_step_", fab_step<Cpu>); }
#ifdef FASTARD_WITH_CUDA
void implement_fab_ops_cuda(TorchLibraryHandle lib) { implement(lib, "fab_step_", fab_step<Cuda>); }
#endif

}  // namespace fastard
