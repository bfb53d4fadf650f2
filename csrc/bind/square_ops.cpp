// Square Attack's operator: its schema, checks at the boundary, and the way to square.h.
#include "device.h"
#include "ops.h"

namespace fastard {
namespace {

bool together(const Tensor& t, const Tensor& like) {
  return t.contiguous() && t.device_type() == like.device_type() &&
         t.device_index() == like.device_index();
}
void require_images(const Tensor& t, const Tensor& x, const char* name) {
  require(t.same_shape(x) && t.dtype() == x.dtype() && together(t, x),
          std::string(name) + " must be contiguous with x's shape, dtype and device.");
}
const float* channel_values(const Tensor& t, const Tensor& x, const char* name) {
  if (!t) return nullptr;
  require(t.type(name) == kF32 && t.numel() == x.sizes()[1] && together(t, x),
          std::string(name) + " must be one float32 per channel on x's device.");
  return static_cast<const float*>(t.data());
}
int64_t in_range(StableIValue value, int64_t first, int64_t last, const char* name) {
  const int64_t found = decode<int64_t>(value);
  require(found >= first && found <= last, std::string(name) + " is out of range.");
  return found;
}

// x_best, trial, x, eps, draws, labels, margin, loss, queries, norm, ce, targeted, judged,
// judged_side, proposed, proposed_side, clip_min, clip_max, logits, pyramid, mean, std
template <class Device> void square_step(StableIValue* s, uint64_t, uint64_t) {
  Tensor x_best = Tensor::required(s[0]), trial = Tensor::required(s[1]);
  Tensor x = Tensor::required(s[2]), eps = Tensor::required(s[3]), draws = Tensor::required(s[4]);
  Tensor labels = Tensor::required(s[5]), margin = Tensor::required(s[6]);
  Tensor loss = Tensor::required(s[7]), queries = Tensor::required(s[8]);
  Tensor logits = Tensor::optional(s[18]), pyramid = Tensor::optional(s[19]);
  Tensor mean = Tensor::optional(s[20]), std = Tensor::optional(s[21]);
  require(x.dim() == 4 && x.contiguous(), "x must be contiguous [rows, channels, height, width].");
  SquareArgs a = {};
  a.x_type = x.type("x");
  require(a.x_type == kF32 || a.x_type == kF64, "x must be float32 or float64.");
  require_images(x_best, x, "x_best");
  require_images(trial, x, "trial");
  a.rows = x.sizes()[0];
  a.channels = x.sizes()[1];
  a.height = x.sizes()[2];
  a.width = x.sizes()[3];
  require((eps.numel() == 1 || eps.numel() == a.rows) && eps.type("eps") == a.x_type &&
              together(eps, x),
          "eps must hold one value or one per row, in x's dtype and on its device.");
  a.eps = {eps.data(), eps.numel() == 1 ? 0 : 1, 0.0};
  a.norm = int(in_range(s[9], kLinf, kL1, "norm"));
  a.numbers = (a.norm == kLinf ? 2 : 5) + a.channels;
  require(draws.dim() == 3 && draws.type("draws") == kF32 && together(draws, x) &&
              (draws.sizes()[0] == 1 || draws.sizes()[0] == a.rows) &&
              draws.sizes()[2] == a.numbers,
          "draws must be contiguous float32 [rows or 1, queries, " + std::to_string(a.numbers) +
              "] on x's device.");
  a.draw_rows = draws.sizes()[0];
  a.draw_queries = draws.sizes()[1];
  a.ce = decode<bool>(s[10]);
  a.targeted = decode<bool>(s[11]);
  const int64_t most = a.height < a.width ? a.height : a.width;
  a.judged = in_range(s[12], -1, a.draw_queries - 1, "judged");
  if (a.judged >= 0) a.judged_side = in_range(s[13], 1, most, "judged_side");
  a.proposed = in_range(s[14], -1, a.draw_queries - 1, "proposed");
  if (a.proposed >= 0) a.proposed_side = in_range(s[15], 1, most, "proposed_side");
  a.clip_min = decode<double>(s[16]);
  a.clip_max = decode<double>(s[17]);

  const int32_t wide = margin.dtype();
  a.logits_type = margin.type("margin");
  require(a.logits_type == kF32 || a.logits_type == kF64, "margin must be float32 or float64.");
  require(margin.numel() == a.rows && together(margin, x) && loss.numel() == a.rows &&
              together(loss, x) && loss.dtype() == wide,
          "margin and loss must be one value per row, of one dtype.");
  require(labels.dtype() == aoti_torch_dtype_int64() && labels.numel() == a.rows &&
              together(labels, x) && queries.dtype() == aoti_torch_dtype_int64() &&
              queries.numel() == a.rows && together(queries, x),
          "labels and queries must be one int64 per row.");
  require(bool(logits) == (a.judged >= 0), "logits and a query to judge go together.");
  if (logits) {
    require(logits.dim() == 2 && logits.sizes()[0] == a.rows && logits.sizes()[1] >= 2 &&
                logits.dtype() == wide && together(logits, x),
            "logits must be contiguous [rows, 2 or more classes] in margin's dtype.");
    a.classes = logits.sizes()[1];
  }
  if (a.norm != kLinf && a.proposed >= 0) {
    require(pyramid && pyramid.type("pyramid") == kF32 && together(pyramid, x) &&
                pyramid.numel() == a.proposed_side * a.proposed_side,
            "pyramid must be contiguous float32 [proposed_side, proposed_side].");
    a.pyramid = static_cast<const float*>(pyramid.data());
  }
  require(bool(mean) == bool(std) && (!mean || a.norm == kLinf),
          "mean and std go together, and with Linf.");
  a.mean = channel_values(mean, x, "mean");
  a.std = channel_values(std, x, "std");
  a.logits = logits.data();
  a.labels = static_cast<const int64_t*>(labels.data());
  a.x = x.data();
  a.draws = static_cast<const float*>(draws.data());
  a.x_best = x_best.mutable_data();
  a.trial = trial.mutable_data();
  a.margin = margin.mutable_data();
  a.loss = loss.mutable_data();
  a.queries = static_cast<int64_t*>(queries.mutable_data());
  if (x.numel()) Device(x).square(a);
}

}  // namespace

void define_square_ops(TorchLibraryHandle lib) {
  define(lib,
         "square_step_(Tensor(a!) x_best, Tensor(b!) trial, Tensor x, Tensor eps, Tensor draws, "
         "Tensor labels, Tensor(c!) margin, Tensor(d!) loss, Tensor(e!) queries, int norm, "
         "bool ce, bool targeted, int judged, int judged_side, int proposed, int proposed_side, "
         "float clip_min, float clip_max, Tensor? logits, Tensor? pyramid, Tensor? mean, "
         "Tensor? std) -> ()");
}

void implement_square_ops_cpu(TorchLibraryHandle lib) {
  implement(lib, "square_step_", square_step<Cpu>);
}
void implement_square_ops_cuda(TorchLibraryHandle lib) {
#ifdef FASTARD_WITH_CUDA
  implement(lib, "square_step_", square_step<Cuda>);
#else
  (void)lib;
#endif
}

}  // namespace fastard
