// Every kernel's interface: pointers, sizes, a stream. Samples are dense and outermost; within a
// sample elements lie in one shared order (contiguous or channels_last).
#pragma once
#include <stdint.h>

namespace fastard {

enum DType : int { kF32 = 0, kF64 = 1, kF16 = 2, kBF16 = 3 };
enum Norm : int { kLinf = 0, kL2 = 1, kL1 = 2 };
enum LossKind : int { kKL = 0, kCE = 1, kMixture = 2, kMargin = 3, kDLR = 4 };
enum StartKind : int { kUniform = 0, kGaussian = 1 };

// One value for all samples (data == nullptr) or stride 0 / 1 into an array of the accumulation
// type (float, or double where x is double).
struct PerSample {
  const void* data;
  int64_t stride;
  double value;
};

struct StepArgs {
  void* x_adv;
  const void* grad;
  const void* x;
  void* feed;         // second output (x_adv - mean) / std, cast; may be null
  const float* mean;  // [channels] or null
  const float* std;
  int x_type, grad_type, feed_type, norm;
  int64_t batch, n;         // samples, elements of one
  int64_t channels, plane;  // element i belongs to channel (i / plane) % channels
  PerSample eps, alpha;
  PerSample l1_sparsity;  // the share of coordinates that an L1 step moves
  void* moved;            // L1: l1_moved's count of each sample, in the accumulation type; or null
  double clip_min, clip_max;
};

struct StartArgs {
  void* x_adv;
  const void* x;
  const void* noise;   // U[0,1) or N(0,1), in x_adv's order
  const void* radius;  // [batch] of U[0,1) for the L2 ball, else null
  int x_type, noise_type, radius_type, norm, kind;
  int64_t batch, n;
  PerSample eps;
  double sigma, clip_min, clip_max;
  bool clip;
};

struct RowArgs {
  const void* logits;     // [rows, classes]
  const void* target;     // teacher logits or null
  const int64_t* labels;  // [rows] or null
  const int64_t* goals;   // the classes that a targeted DLR aims at, or null
  void* loss;             // [rows] in the accumulation type
  void* dlogits;          // [rows, classes] or null
  void* dtarget;          // [rows, classes] or null
  int logits_type, target_type, kind;
  int dlogits_type, dtarget_type;
  bool targeted;
  int64_t rows, classes;
  double temperature, kappa, mix, log_floor, scale;
};

// Where the row losses are to be summed, in fp64.
struct SumArgs {
  void* total;       // one value in the accumulation type
  double* partials;  // [rows]
  uint32_t* ticket;  // CUDA: counts blocks, zero before and after
};

// CUDA counts the elements of an L1 sample and the classes of a row in ints.
constexpr int64_t kMostPlaces = 1 << 30;

// CPU; 0, or a Status that says what was wrong.
enum Status : int { kOk = 0, kNoMemory = 1, kBadLabel = 2 };
int cpu_pgd_step(const StepArgs& a);
int cpu_random_start(const StartArgs& a);
int cpu_logit_rows(const RowArgs& a);
int cpu_distill_kl(const RowArgs& a, const SumArgs& s);
const char* cpu_isa();

#ifdef FASTARD_WITH_CUDA
// CUDA; 0 or a cudaError_t.
int cuda_pgd_step(const StepArgs& a, void* stream);
int cuda_random_start(const StartArgs& a, void* stream);
int cuda_logit_rows(const RowArgs& a, void* stream);
int cuda_distill_kl(const RowArgs& a, const SumArgs& s, void* stream);
// Makes a device current to the calling thread, as torch's own device guard has already done.
int cuda_select(int device);
int cuda_runtime_version();
int cuda_driver_version();
const char* cuda_error(int code);
#endif

}  // namespace fastard
