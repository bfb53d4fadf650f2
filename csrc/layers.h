// The engine's kernels: folding weights, epilogues of layers and their backward, depthwise
// convolutions. Pointers, sizes, a stream; tensors are dense.
#pragma once
#include "kernels.h"

namespace fastard {

enum Act : int {
  kNoAct = 0, kRelu = 1, kRelu6 = 2, kSilu = 3, kGelu = 4, kGeluTanh = 5, kHardswish = 6
};

// A row of fold_bn_'s table. Vectors are dense; the weight may have any strides.
struct FoldLayer {
  // weight, bias, then gain, shift, mean, var of the normalisation after and of the one before.
  const void* data[10];
  int64_t types[10];
  int64_t sizes[4], strides[4];  // out, in, height, width of the weight; sizes[0] alone if none
  double eps_after, eps_before;
  // Bytes into the arena, or -1: the folded weight, bias, scale (fp32).
  int64_t weight_at, bias_at, scale_at;
  int64_t dtype, channels_last;
};
constexpr int64_t kFoldColumns = sizeof(FoldLayer) / 8;

struct FoldArgs {
  void* arena;
  const FoldLayer* layers;
  int64_t count;
};

// Forward: act(v), v = x * scale + shift + other. Backward: (x + extra) * act'(v) * scale + other,
// where v is saved * scale + shift, or, without shift, what saved says: the output of kRelu and
// kRelu6 (they mask alike), v itself for the others.
struct EpilogueArgs {
  const void *x, *other, *saved, *extra;
  const float *scale, *shift;  // [channels] or null
  void* out;                   // may be x, other or extra
  void* pre;                   // forward: v, or null; may be x
  int x_type, type, act;       // x may be fp32 beside half precision: the cast is done here
  bool backward;
  int64_t count, channels, plane;  // element i belongs to channel (i / plane) % channels
};

// A depthwise convolution of NHWC images or its gradient in the input, by one filter a channel.
// Masks have a bit a value, channels padded to 16.
struct DepthwiseArgs {
  const void* in;        // x, or the gradient of y
  const float* weight;   // [kernel, kernel, channels]
  const float* bias;     // forward, or null
  void* out;             // y, or the gradient of x
  const uint8_t* in_mask;   // backward: where y let the gradient through; or null
  const uint8_t* out_mask;  // backward: where x itself was let through; or null
  uint8_t* in_bits;         // forward: written with where 0 < x (< 6 for in_act kRelu6); or null
  uint8_t* out_bits;        // forward: the same of y; or null
  int type, act, in_act;
  bool backward;
  int64_t batch, channels, height, width, out_height, out_width;  // x's and y's
  int64_t kernel, stride, padding;
};

// A bit an element in memory order, padded to 16: made where 0 < x (< 6 for kRelu6), or (`apply`)
// applied: out = bit ? x + extra : 0.
struct BitsArgs {
  const void *x, *extra;
  void* out;  // may be x or extra
  uint8_t* bits;
  int type, act;
  bool apply;
  int64_t count;
};

int cpu_fold(const FoldArgs& a);
int cpu_epilogue(const EpilogueArgs& a);
int cpu_depthwise(const DepthwiseArgs& a);
int cpu_mask_bits(const BitsArgs& a);

#ifdef FASTARD_WITH_CUDA
int cuda_fold(const FoldArgs& a, void* stream);
int cuda_epilogue(const EpilogueArgs& a, void* stream);
#endif

}  // namespace fastard
