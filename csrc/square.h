// Square Attack's step: judge the last proposal by its logits, then write the next one.
#pragma once
#include "kernels.h"

namespace fastard {

struct SquareArgs {
  // Images, contiguous [rows, channels, height, width].
  void* x_best;
  void* trial;  // what the network reads; L1: displacements, not yet projected
  const void* x;
  const float* mean;  // Linf: trial is (image - mean) / std; [channels] or null
  const float* std;
  const float* draws;    // U[0,1), [rows or 1, queries, numbers]
  const float* pyramid;  // L2 and L1: [proposed_side, proposed_side]
  const void* logits;    // [rows, classes] or null
  const int64_t* labels;
  void* margin;  // [rows] in the logits' type; a row above 0 is still attacked
  void* loss;
  int64_t* queries;  // [rows]
  int x_type, logits_type, norm;
  bool ce, targeted;
  int64_t rows, channels, height, width, classes;
  int64_t draw_rows, draw_queries, numbers;
  int64_t judged, judged_side;  // which query of the draws; -1: none
  int64_t proposed, proposed_side;
  PerSample eps;
  double clip_min, clip_max;
};

int cpu_square_step(const SquareArgs& a);
#ifdef FASTARD_WITH_CUDA
int cuda_square_step(const SquareArgs& a, void* stream);
#endif

}  // namespace fastard
