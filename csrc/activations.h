// The activations of the engine's epilogues and their slopes, once for CPU and CUDA.
#pragma once
#include "layers.h"
#include "math.h"

namespace fastard {
namespace FA_ISA {

FA_FN float sigmoid(float v) {
  const float e = exponential(-magnitude(v));
  return (v < 0.0f ? e : 1.0f) / (1.0f + e);
}
FA_FN float hyperbolic_tangent(float v) {
  const float e = exponential(-2.0f * magnitude(v)), t = (1.0f - e) / (1.0f + e);
  return v < 0.0f ? -t : t;
}
// Abramowitz and Stegun 7.1.26: absolute errors below 2e-7, no branch.
FA_FN float error_function(float v) {
  const float size = magnitude(v), t = 1.0f / (1.0f + 0.3275911f * size);
  const float p =
      ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t +
       0.254829592f) * t;
  const float e = 1.0f - p * exponential(-size * size);
  return v < 0.0f ? -e : e;
}
FA_FN float gelu_tanh_argument(float v) {
  return 0.79788456080286536f * (v + 0.044715f * v * v * v);
}

template <int ACT> FA_FN float activated(float v) {
  if (ACT == kRelu) return v > 0.0f ? v : (v == v ? 0.0f : v);
  if (ACT == kRelu6) return v == v ? clamp(v, 0.0f, 6.0f) : v;
  if (ACT == kSilu) return v * sigmoid(v);
  if (ACT == kGelu) return 0.5f * v * (1.0f + error_function(v * 0.70710678118654752f));
  if (ACT == kGeluTanh) return 0.5f * v * (1.0f + hyperbolic_tangent(gelu_tanh_argument(v)));
  if (ACT == kHardswish) return v * clamp(v + 3.0f, 0.0f, 6.0f) * (1.0f / 6.0f);
  return v;
}

// d act / d input of those whose input is saved.
template <int ACT> FA_FN float slope(float v) {
  if (ACT == kSilu) {
    const float s = sigmoid(v);
    return s * (1.0f + v * (1.0f - s));
  }
  if (ACT == kGelu)
    return 0.5f * (1.0f + error_function(v * 0.70710678118654752f)) +
           v * 0.39894228040143268f * exponential(-0.5f * v * v);
  if (ACT == kGeluTanh) {
    const float t = hyperbolic_tangent(gelu_tanh_argument(v));
    return 0.5f * (1.0f + t) +
           0.5f * v * (1.0f - t * t) * 0.79788456080286536f * (1.0f + 0.134145f * v * v);
  }
  if (ACT == kHardswish)
    return v <= -3.0f ? 0.0f : (v >= 3.0f ? 1.0f : v * (1.0f / 3.0f) + 0.5f);
  return 1.0f;
}

// The gradient before act from the one behind it; a mask selects, so that NaN * 0 stays 0.
template <int ACT> FA_FN float pulled_back(float grad, float v) {
  if (ACT == kRelu) return v > 0.0f ? grad : 0.0f;
  if (ACT == kRelu6) return v > 0.0f && v < 6.0f ? grad : 0.0f;
  return grad * slope<ACT>(v);
}

// gain / sqrt(var + eps) and shift - mean * that, in double.
struct Scaling {
  double scale, shift;
};
template <class Read> FA_FN Scaling scaling(const FoldLayer& f, int first, double eps, int64_t c,
                                            Read read) {
  Scaling found = {1.0, 0.0};
  if (!f.data[first + 2]) return found;
  found.scale = 1.0 / sqrt(read(f, first + 3, c) + eps);
  if (f.data[first]) found.scale *= read(f, first, c);
  found.shift = (f.data[first + 1] ? read(f, first + 1, c) : 0.0) -
                read(f, first + 2, c) * found.scale;
  return found;
}

}  // namespace FA_ISA
}  // namespace fastard
