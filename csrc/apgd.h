// The interface of APGD's kernels, and of the noise that evaluation attacks draw; as kernels.h.
#pragma once
#include "kernels.h"

namespace fastard {

// x_adv's next point, in place, and the point left in x_old; fp32 or fp64, Linf or L2.
struct ApgdStepArgs {
  void *x_adv, *x_old;
  const void *grad, *x;
  int type, norm;
  int64_t batch, n;
  PerSample eps, size;
  double fresh, clip_min, clip_max;
};

// The rows of `marks`, [kMarks, batch] in the images' type.
enum Mark : int {
  kBestLoss = 0,
  kSize = 1,
  kBack = 2,  // whether the last look back sent the sample to its best point
  // Linf and L2
  kPrevious = 3,  // the loss before
  kRises = 4,
  kBestThen = 5,
  // L1
  kShare = 3,
  kMovedThen = 4,
  kLeast = 5,
  kRadius = 6,
  kMovedBest = 7,  // coordinates that differ at the best point, as l1_moved counts
  kMovedNow = 8,   // and at the latest
  kMarks = 9
};

// What a query tells: the best point and the latest that fooled the model, rows copied where they
// changed; each sample's size follows.
struct ApgdKeepArgs {
  const void *x_adv, *grad, *x, *loss;
  const bool* correct;
  void *best, *best_grad, *fooled;
  bool* robust;
  void* marks;
  int type;
  bool sparse;  // L1
  int64_t batch, n;
  int64_t window;  // queries since the last look back where one is due, else 0
  double rho;
};

// out[batch, numbers] from Philox at (number / 4, id, stream, iteration), keyed by the seed.
struct NoiseArgs {
  const int64_t* ids;
  float* out;
  int64_t batch, numbers;
  uint64_t seed;
  uint32_t stream, iteration;
  bool normal;
};

int cpu_apgd_step(const ApgdStepArgs& a);
int cpu_apgd_keep(const ApgdKeepArgs& a);
int cpu_counter_noise(const NoiseArgs& a);
#ifdef FASTARD_WITH_CUDA
int cuda_apgd_step(const ApgdStepArgs& a, void* stream);
int cuda_apgd_keep(const ApgdKeepArgs& a, void* stream);
int cuda_counter_noise(const NoiseArgs& a, void* stream);
#endif

}  // namespace fastard
