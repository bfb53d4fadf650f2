// Schemas, checks at the boundary, and the way from torch's boxed arguments to kernels.h.
#include "ops.h"

#include "arguments.h"
#include "device.h"

namespace fastard {
namespace {

void require_like(const Tensor& t, const Tensor& like, const char* name) {
  const std::string who = name;
  require(t.same_shape(like), who + " must have x_adv's shape.");
  require(t.device_type() == like.device_type() && t.device_index() == like.device_index(),
          who + " must be on x_adv's device.");
  require(t.same_layout(like), who + " must have x_adv's memory layout.");
}

int code(StableIValue value, int first, int last, const char* name) {
  const int64_t found = decode<int64_t>(value);
  require(found >= first && found <= last, std::string(name) + " is not a known code.");
  return int(found);
}

PerSample scalar(double value) { return {nullptr, 0, value}; }
PerSample per_sample(const Tensor& t, const Tensor& x, int64_t batch, const char* name) {
  const int64_t n = t.numel();
  const int wanted = x.type("x") == kF64 ? kF64 : kF32;
  require((n == 1 || n == batch) && t.contiguous(),
          std::string(name) + " must hold one value or one per sample, contiguous.");
  require(t.type(name) == wanted, std::string(name) + " must be float32 (float64 where x is).");
  require(t.device_type() == x.device_type() && t.device_index() == x.device_index(),
          std::string(name) + " must be on x_adv's device.");
  return {t.data(), n == 1 ? 0 : 1, 0.0};
}

const float* channel_values(const Tensor& t, const Tensor& x, int64_t channels, const char* name) {
  if (!t) return nullptr;
  require(t.type(name) == kF32 && t.numel() == channels && t.contiguous() &&
              t.device_type() == x.device_type() && t.device_index() == x.device_index(),
          std::string(name) + " must be one float32 per channel on x_adv's device.");
  return static_cast<const float*>(t.data());
}

// x_adv, grad, x, eps, alpha, norm, clip_min, clip_max, l1_sparsity, feed, mean, std
template <class Device, bool TENSOR> void pgd_step(StableIValue* s, uint64_t, uint64_t) {
  Tensor x_adv = Tensor::required(s[0]), grad = Tensor::required(s[1]), x = Tensor::required(s[2]);
  Tensor eps = TENSOR ? Tensor::required(s[3]) : Tensor();
  Tensor alpha = TENSOR ? Tensor::required(s[4]) : Tensor();
  Tensor feed = Tensor::optional(s[9]), mean = Tensor::optional(s[10]),
         std = Tensor::optional(s[11]);
  require_like(grad, x_adv, "grad");
  require_like(x, x_adv, "x");
  require(x.dtype() == x_adv.dtype(), "x must have x_adv's dtype.");
  require(x_adv.dim() >= 1 && x_adv.dense_samples(),
          "x_adv must be dense with samples outermost (contiguous or channels_last).");
  if (feed) require_like(feed, x_adv, "feed");
  require(!mean == !std, "mean and std go together.");

  StepArgs a = {};
  a.batch = x_adv.sizes()[0];
  a.n = a.batch ? x_adv.numel() / a.batch : 0;
  a.channels = x_adv.dim() > 1 ? x_adv.sizes()[1] : 1;
  a.plane = x_adv.dim() > 1 && a.channels > 1 ? x_adv.strides()[1] : (a.n > 0 ? a.n : 1);
  a.grad = grad.data();
  a.x = x.data();
  a.x_type = x.type("x");
  a.grad_type = grad.type("grad");
  a.norm = code(s[5], kLinf, kL1, "norm");
  a.eps = TENSOR ? per_sample(eps, x, a.batch, "eps") : scalar(decode<double>(s[3]));
  a.alpha = TENSOR ? per_sample(alpha, x, a.batch, "alpha") : scalar(decode<double>(s[4]));
  a.clip_min = decode<double>(s[6]);
  a.clip_max = decode<double>(s[7]);
  a.l1_sparsity = scalar(decode<double>(s[8]));
  a.mean = channel_values(mean, x, a.channels, "mean");
  a.std = channel_values(std, x, a.channels, "std");
  a.feed_type = feed ? feed.type("feed") : kF32;
  a.x_adv = x_adv.mutable_data();
  a.feed = feed.mutable_data();
  if (x_adv.numel()) Device(x_adv).step(a);
}

// x_adv, x, noise, radius, eps, norm, kind, sigma, clip, clip_min, clip_max
template <class Device, bool TENSOR> void random_start(StableIValue* s, uint64_t, uint64_t) {
  Tensor x_adv = Tensor::required(s[0]), x = Tensor::required(s[1]), noise = Tensor::required(s[2]);
  Tensor radius = Tensor::optional(s[3]), eps = TENSOR ? Tensor::required(s[4]) : Tensor();
  require_like(x, x_adv, "x");
  require_like(noise, x_adv, "noise");
  require(x.dtype() == x_adv.dtype(), "x must have x_adv's dtype.");
  require(x_adv.dim() >= 1 && x_adv.dense_samples(),
          "x_adv must be dense with samples outermost (contiguous or channels_last).");
  StartArgs a = {};
  a.batch = x_adv.sizes()[0];
  a.n = a.batch ? x_adv.numel() / a.batch : 0;
  a.norm = code(s[5], kLinf, kL1, "norm");
  a.kind = code(s[6], kUniform, kGaussian, "kind");
  if (a.kind == kUniform && a.norm == kL2)
    require(radius && radius.numel() == a.batch && radius.contiguous() &&
                radius.device_type() == x_adv.device_type() &&
                radius.device_index() == x_adv.device_index(),
            "radius must hold one value per sample on x_adv's device.");
  a.x = x.data();
  a.noise = noise.data();
  a.radius = radius.data();
  a.x_type = x.type("x");
  a.noise_type = noise.type("noise");
  a.radius_type = radius ? radius.type("radius") : kF32;
  a.eps = TENSOR ? per_sample(eps, x, a.batch, "eps") : scalar(decode<double>(s[4]));
  a.sigma = decode<double>(s[7]);
  a.clip = decode<bool>(s[8]);
  a.clip_min = decode<double>(s[9]);
  a.clip_max = decode<double>(s[10]);
  a.x_adv = x_adv.mutable_data();
  if (x_adv.numel()) Device(x_adv).start(a);
}

void require_rows(const Tensor& t, const Tensor& logits, const char* name) {
  require(t.same_shape(logits) && t.contiguous() && t.device_type() == logits.device_type() &&
              t.device_index() == logits.device_index(),
          std::string(name) + " must be contiguous with the logits' shape and device.");
}
const int64_t* class_indices(const Tensor& t, const Tensor& logits, const char* name) {
  if (!t) return nullptr;
  require(t.dtype() == aoti_torch_dtype_int64() && t.numel() == logits.sizes()[0] &&
              t.contiguous() && t.device_type() == logits.device_type() &&
              t.device_index() == logits.device_index(),
          std::string(name) + " must be one int64 per row on the logits' device.");
  return static_cast<const int64_t*>(t.data());
}

RowArgs row_args(const Tensor& logits, const Tensor& target, const Tensor& loss,
                 const Tensor& dlogits, const Tensor& dtarget) {
  require(logits.dim() == 2 && logits.contiguous(), "logits must be contiguous [rows, classes].");
  if (target) require_rows(target, logits, "target");
  if (dlogits) require_rows(dlogits, logits, "dlogits");
  if (dtarget) require_rows(dtarget, logits, "dtarget");
  RowArgs a = {};
  a.rows = logits.sizes()[0];
  a.classes = logits.sizes()[1];
  a.logits_type = logits.type("logits");
  a.target_type = target ? target.type("target") : a.logits_type;
  a.dlogits_type = dlogits ? dlogits.type("dlogits") : a.logits_type;
  a.dtarget_type = dtarget ? dtarget.type("dtarget") : a.target_type;
  require(loss.contiguous() && loss.type("loss") == (a.logits_type == kF64 ? kF64 : kF32),
          "loss must be contiguous float32 (float64 where the logits are).");
  a.logits = logits.data();
  a.target = target.data();
  a.dlogits = dlogits.mutable_data();
  a.dtarget = dtarget.mutable_data();
  return a;
}

// logits, target, labels, goals, kind, targeted, temperature, kappa, mix, scale, loss, dlogits,
// dtarget
template <class Device> void logit_loss(StableIValue* s, uint64_t, uint64_t) {
  Tensor logits = Tensor::required(s[0]), target = Tensor::optional(s[1]);
  Tensor labels = Tensor::optional(s[2]), goals = Tensor::optional(s[3]);
  Tensor loss = Tensor::required(s[10]), dlogits = Tensor::required(s[11]);
  Tensor dtarget = Tensor::optional(s[12]);
  RowArgs a = row_args(logits, target, loss, dlogits, dtarget);
  require(a.dlogits_type == a.logits_type, "dlogits must have the logits' dtype.");
  require(a.dtarget_type == a.target_type, "dtarget must have the target's dtype.");
  require(loss.numel() == a.rows, "loss must hold one value per row.");
  a.labels = class_indices(labels, logits, "labels");
  a.goals = class_indices(goals, logits, "goals");
  a.kind = code(s[4], kKL, kDLR, "kind");
  a.targeted = decode<bool>(s[5]);
  a.temperature = decode<double>(s[6]);
  a.kappa = decode<double>(s[7]);
  a.mix = decode<double>(s[8]);
  a.scale = decode<double>(s[9]);
  require(target || (a.kind != kKL && a.kind != kMixture), "this loss needs a target.");
  require(labels || a.kind == kKL, "this loss needs labels.");
  require(goals || a.kind != kDLR || !a.targeted, "a targeted DLR needs goals.");
  const int64_t fewest = a.kind == kDLR ? (a.targeted ? 4 : 3) : (a.kind == kMargin ? 2 : 1);
  require(a.classes >= fewest, "this loss needs more classes.");
  a.loss = loss.mutable_data();
  if (a.rows) Device(logits).rows(a);
}

// Where a kernel keeps `n` values that nobody else reads.
void* scratch(const Tensor& t, const Tensor& logits, int32_t dtype, int64_t n, const char* what) {
  require(t.dtype() == dtype && t.numel() >= n && t.contiguous() &&
              t.device_type() == logits.device_type() && t.device_index() == logits.device_index(),
          std::string(what) + " on the logits' device.");
  return t.mutable_data();
}

// student, teacher, temperature, log_floor, scale, loss, dstudent, dteacher, partials, ticket
template <class Device> void distill_kl(StableIValue* s, uint64_t, uint64_t) {
  Tensor student = Tensor::required(s[0]), teacher = Tensor::required(s[1]);
  Tensor loss = Tensor::required(s[5]);
  Tensor dstudent = Tensor::optional(s[6]), dteacher = Tensor::optional(s[7]);
  Tensor partials = Tensor::optional(s[8]), ticket = Tensor::optional(s[9]);
  RowArgs a = row_args(student, teacher, loss, dstudent, dteacher);
  require((a.dlogits_type == kF64) == (a.logits_type == kF64),
          "dstudent must be float64 where the student's logits are, and only there.");
  a.kind = kKL;
  a.temperature = decode<double>(s[2]);
  a.log_floor = decode<double>(s[3]);
  a.scale = decode<double>(s[4]);
  a.loss = loss.mutable_data();
  if (loss.dim()) {
    require(loss.numel() == a.rows, "loss must be 0-dim or hold one value per row.");
    if (a.rows) Device(student).rows(a);
    return;
  }
  SumArgs sum = {};
  sum.total = a.loss;
  require(bool(partials), "a loss that is summed needs partials.");
  sum.partials = static_cast<double*>(scratch(partials, student, aoti_torch_dtype_float64(), a.rows,
                                              "partials must be one float64 per row"));
  if (ticket)
    sum.ticket = static_cast<uint32_t*>(
        scratch(ticket, student, aoti_torch_dtype_int32(), 1, "ticket must be one int32"));
  Device(student).summed(a, sum);
}

constexpr const char* kStepTail =
    "int norm, float clip_min, float clip_max, float l1_sparsity, Tensor(b!)? feed, "
    "Tensor? mean, Tensor? std) -> ()";
constexpr const char* kStartTail =
    "int norm, int kind, float sigma, bool clip, float clip_min, float clip_max) -> ()";

}  // namespace

void register_ops() {
  // Never freed: operators live as long as the process.
  TorchLibraryHandle defs, cpu;
  ok(aoti_torch_library_init_def("fastard", __FILE__, __LINE__, &defs), "open a library");
  const std::string step = "(Tensor(a!) x_adv, Tensor grad, Tensor x, ";
  define(defs, "pgd_step_.Scalar" + step + "float eps, float alpha, " + kStepTail);
  define(defs, "pgd_step_.Tensor" + step + "Tensor eps, Tensor alpha, " + kStepTail);
  const std::string start = "(Tensor(a!) x_adv, Tensor x, Tensor noise, Tensor? radius, ";
  define(defs, "random_start_.Scalar" + start + "float eps, " + kStartTail);
  define(defs, "random_start_.Tensor" + start + "Tensor eps, " + kStartTail);
  define(defs,
         "logit_loss(Tensor logits, Tensor? target, Tensor? labels, Tensor? goals, int kind, "
         "bool targeted, float temperature, float kappa, float mix, float scale, "
         "Tensor(a!) loss, Tensor(b!) dlogits, Tensor(c!)? dtarget) -> ()");
  define(defs,
         "distill_kl(Tensor student, Tensor teacher, float temperature, float log_floor, "
         "float scale, Tensor(a!) loss, Tensor(b!)? dstudent, Tensor(c!)? dteacher, "
         "Tensor(d!)? partials, Tensor(e!)? ticket) -> ()");
  ok(aoti_torch_library_init_impl("fastard", "CPU", __FILE__, __LINE__, &cpu), "open a library");
  implement(cpu, "pgd_step_.Scalar", pgd_step<Cpu, false>);
  implement(cpu, "pgd_step_.Tensor", pgd_step<Cpu, true>);
  implement(cpu, "random_start_.Scalar", random_start<Cpu, false>);
  implement(cpu, "random_start_.Tensor", random_start<Cpu, true>);
  implement(cpu, "logit_loss", logit_loss<Cpu>);
  implement(cpu, "distill_kl", distill_kl<Cpu>);
  define_layer_ops(defs);
  define_square_ops(defs);
  implement_layer_ops_cpu(cpu);
  implement_square_ops_cpu(cpu);
  define_fab_ops(defs);
  implement_fab_ops_cpu(cpu);
  define_apgd_ops(defs);
  implement_apgd_ops_cpu(cpu);
#ifdef FASTARD_WITH_CUDA
  TorchLibraryHandle cuda;
  ok(aoti_torch_library_init_impl("fastard", "CUDA", __FILE__, __LINE__, &cuda), "open a library");
  implement(cuda, "pgd_step_.Scalar", pgd_step<Cuda, false>);
  implement(cuda, "pgd_step_.Tensor", pgd_step<Cuda, true>);
  implement(cuda, "random_start_.Scalar", random_start<Cuda, false>);
  implement(cuda, "random_start_.Tensor", random_start<Cuda, true>);
  implement(cuda, "logit_loss", logit_loss<Cuda>);
  implement(cuda, "distill_kl", distill_kl<Cuda>);
  implement_layer_ops_cuda(cuda);
  implement_square_ops_cuda(cuda);
  implement_fab_ops_cuda(cuda);
  implement_apgd_ops_cuda(cuda);
#endif
}

}  // namespace fastard
