// APGD's schemas and the noise's, checks at the boundary.
#include "../apgd.h"
#include "device.h"
#include "ops.h"

namespace fastard {
namespace {

bool beside(const Tensor& t, const Tensor& x) {
  return t.device_type() == x.device_type() && t.device_index() == x.device_index();
}
void require_image(const Tensor& t, const Tensor& x_adv, const char* name) {
  require(
      t.same_shape(x_adv) && t.same_layout(x_adv) && t.dtype() == x_adv.dtype() && beside(t, x_adv),
      std::string(name) + " must have x_adv's shape, dtype, device and memory layout.");
}
// fp32 or fp64, which all that goes with it has.
int own_type(const Tensor& x_adv) {
  const int type = x_adv.type("x_adv");
  require(type == kF32 || type == kF64, "x_adv must be float32 or float64.");
  require(x_adv.dim() >= 1 && x_adv.dense_samples(),
          "x_adv must be dense with samples outermost (contiguous or channels_last).");
  return type;
}
PerSample values(const Tensor& t, const Tensor& x_adv, const char* name) {
  const int64_t n = t.numel(), batch = x_adv.sizes()[0];
  require(
      (n == 1 || n == batch) && t.contiguous() && t.dtype() == x_adv.dtype() && beside(t, x_adv),
      std::string(name) + " must hold one value or one per sample in x_adv's dtype.");
  return {t.data(), n == 1 ? 0 : 1, 0.0};
}
const bool* flags(const Tensor& t, const Tensor& x_adv, const char* name) {
  require(t.dtype() == aoti_torch_dtype_bool() && t.numel() == x_adv.sizes()[0] && t.contiguous() &&
              beside(t, x_adv),
          std::string(name) + " must be one bool per sample on x_adv's device.");
  return static_cast<const bool*>(t.data());
}

// x_adv, x_old, grad, x, eps, size, share, moved, norm, fresh, clip_min, clip_max
template <class Device> void apgd_step(StableIValue* s, uint64_t, uint64_t) {
  Tensor x_adv = Tensor::required(s[0]), x_old = Tensor::optional(s[1]);
  Tensor grad = Tensor::required(s[2]), x = Tensor::required(s[3]);
  Tensor eps = Tensor::required(s[4]), size = Tensor::required(s[5]);
  Tensor share = Tensor::optional(s[6]), moved = Tensor::optional(s[7]);
  const int type = own_type(x_adv);
  require_image(grad, x_adv, "grad");
  require_image(x, x_adv, "x");
  const int64_t batch = x_adv.sizes()[0], n = batch ? x_adv.numel() / batch : 0;
  const int64_t norm = decode<int64_t>(s[8]);
  require(norm >= kLinf && norm <= kL1, "norm is not a known code.");
  const PerSample radius = values(eps, x_adv, "eps"), step = values(size, x_adv, "size");
  const double lo = decode<double>(s[10]), hi = decode<double>(s[11]);
  if (norm == kL1) {
    require(bool(share), "an L1 step needs share.");
    StepArgs a = {};
    a.x_adv = x_adv.mutable_data();
    a.grad = grad.data(), a.x = x.data();
    a.x_type = a.grad_type = a.feed_type = type;
    a.norm = kL1, a.batch = batch, a.n = n, a.channels = 1, a.plane = n > 0 ? n : 1;
    a.eps = radius, a.alpha = step, a.l1_sparsity = values(share, x_adv, "share");
    a.clip_min = lo, a.clip_max = hi;
    if (moved) {
      require(moved.numel() == batch, "moved must hold one value per sample.");
      if (batch) values(moved, x_adv, "moved");
      a.moved = moved.mutable_data();
    }
    if (x_adv.numel()) Device(x_adv).step(a);
    return;
  }
  require(bool(x_old), "a step with momentum needs x_old.");
  require_image(x_old, x_adv, "x_old");
  ApgdStepArgs a = {};
  a.x_adv = x_adv.mutable_data(), a.x_old = x_old.mutable_data();
  a.grad = grad.data(), a.x = x.data();
  a.type = type, a.norm = int(norm), a.batch = batch, a.n = n;
  a.eps = radius, a.size = step;
  a.fresh = decode<double>(s[9]), a.clip_min = lo, a.clip_max = hi;
  if (x_adv.numel()) Device(x_adv).apgd_step(a);
}

// x_adv, grad, x, loss, correct, best, best_grad, fooled, robust, marks, sparse, window, rho
template <class Device> void apgd_keep(StableIValue* s, uint64_t, uint64_t) {
  Tensor x_adv = Tensor::required(s[0]), grad = Tensor::required(s[1]), x = Tensor::required(s[2]);
  Tensor loss = Tensor::required(s[3]), correct = Tensor::required(s[4]);
  Tensor best = Tensor::required(s[5]), best_grad = Tensor::required(s[6]);
  Tensor fooled = Tensor::required(s[7]), robust = Tensor::required(s[8]);
  Tensor marks = Tensor::required(s[9]);
  ApgdKeepArgs a = {};
  a.type = own_type(x_adv);
  require_image(grad, x_adv, "grad");
  require_image(x, x_adv, "x");
  require_image(best, x_adv, "best");
  require_image(best_grad, x_adv, "best_grad");
  require_image(fooled, x_adv, "fooled");
  a.batch = x_adv.sizes()[0];
  a.n = a.batch ? x_adv.numel() / a.batch : 0;
  require(loss.numel() == a.batch, "loss must hold one value per sample.");
  if (a.batch) values(loss, x_adv, "loss");
  require(marks.dim() == 2 && marks.sizes()[0] == kMarks && marks.sizes()[1] == a.batch &&
              marks.contiguous() && marks.dtype() == x_adv.dtype() && beside(marks, x_adv),
          "marks must be contiguous [9, samples] in x_adv's dtype.");
  a.x_adv = x_adv.data(), a.grad = grad.data(), a.x = x.data(), a.loss = loss.data();
  a.correct = flags(correct, x_adv, "correct");
  flags(robust, x_adv, "robust");
  a.sparse = decode<bool>(s[10]);
  a.window = decode<int64_t>(s[11]);
  a.rho = decode<double>(s[12]);
  a.best = best.mutable_data(), a.best_grad = best_grad.mutable_data();
  a.fooled = fooled.mutable_data();
  a.robust = static_cast<bool*>(robust.mutable_data());
  a.marks = marks.mutable_data();
  if (x_adv.numel()) Device(x_adv).apgd_keep(a);
}

// ids, seed, stream, iteration, normal, out
template <class Device> void counter_noise(StableIValue* s, uint64_t, uint64_t) {
  Tensor ids = Tensor::required(s[0]), out = Tensor::required(s[5]);
  require(ids.dtype() == aoti_torch_dtype_int64() && ids.dim() == 1 && ids.contiguous(),
          "ids must be contiguous int64 [samples].");
  require(out.dim() == 2 && (!out.numel() || out.contiguous()) && out.type("out") == kF32 &&
              out.sizes()[0] == ids.numel() && beside(out, ids),
          "out must be contiguous float32 [samples, numbers] on the ids' device.");
  NoiseArgs a = {};
  a.batch = ids.numel();
  a.numbers = out.sizes()[1];
  require(a.numbers <= (int64_t(1) << 34), "numbers must be at most 2^34.");
  a.ids = static_cast<const int64_t*>(ids.data());
  a.seed = uint64_t(decode<int64_t>(s[1]));
  a.stream = uint32_t(decode<int64_t>(s[2]));
  a.iteration = uint32_t(decode<int64_t>(s[3]));
  a.normal = decode<bool>(s[4]);
  a.out = static_cast<float*>(out.mutable_data());
  if (out.numel()) Device(out).noise(a);
}

template <class Device> void implement_all(TorchLibraryHandle lib) {
  implement(lib, "apgd_step_", apgd_step<Device>);
  implement(lib, "apgd_keep_", apgd_keep<Device>);
  implement(lib, "counter_noise", counter_noise<Device>);
}

}  // namespace

void define_apgd_ops(TorchLibraryHandle lib) {
  define(lib,
         "apgd_step_(Tensor(a!) x_adv, Tensor(b!)? x_old, Tensor grad, Tensor x, Tensor eps, "
         "Tensor size, Tensor? share, Tensor(c!)? moved, int norm, float fresh, float clip_min, float clip_max) "
         "-> ()");
  define(lib,
         "apgd_keep_(Tensor x_adv, Tensor grad, Tensor x, Tensor loss, Tensor correct, "
         "Tensor(a!) best, Tensor(b!) best_grad, Tensor(c!) fooled, Tensor(d!) robust, "
         "Tensor(e!) marks, bool sparse, int window, float rho) -> ()");
  define(lib,
         "counter_noise(Tensor ids, int seed, int stream, int iteration, bool normal, "
         "Tensor(a!) out) -> ()");
}

void implement_apgd_ops_cpu(TorchLibraryHandle lib) { implement_all<Cpu>(lib); }
#ifdef FASTARD_WITH_CUDA
void implement_apgd_ops_cuda(TorchLibraryHandle lib) { implement_all<Cuda>(lib); }
#endif

}  // namespace fastard
