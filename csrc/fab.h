// FAB's iteration: what one kernel does between two network passes.
#pragma once
#include "kernels.h"

namespace fastard {

// Samples as in kernels.h; all of x_type but for the flags. `at` is each sample's point, of which
// `grad` and `gap` describe the boundary's hyperplane: gap + grad . (z - at) = 0.
struct FabArgs {
  void *at, *best, *size;      // size [batch]: the norm of best - x
  int32_t* tests;              // [batch], points tested so far
  uint8_t* trying;             // [batch], whether `at` is a test
  const void *x, *grad, *gap;  // gap [batch]; grad and gap null: nobody goes on but the fooled
  const uint8_t* fooled;       // [batch]
  int x_type, norm;
  int64_t batch, n, n_iter;
  double limit, alpha_max, eta, beta, clip_min, clip_max;
};

int cpu_fab_step(const FabArgs& a);
#ifdef FASTARD_WITH_CUDA
int cuda_fab_step(const FabArgs& a, void* stream);
#endif

}  // namespace fastard
