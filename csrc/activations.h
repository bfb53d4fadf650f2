// The activations of the engine's epilogues and their slopes, once for CPU and CUDA.
#pragma once
#include "layers.h"
#include "math.h"

namespace fastard {
namespace FA_ISA {

// a * b + c in one rounding where the machine has it.
FA_FN float multiplied_added(float a, float b, float c) {
#if defined(__CUDA_ARCH__) || defined(__FP_FAST_FMAF)
  return fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// 1 / (1 + exp(-v)) without overflow, and its derivative without cancellation.
struct Logistic {
  float value, slope;
};
FA_FN Logistic logistic(float v) {
  const float e = exponential(-magnitude(v)), r = 1.0f / (1.0f + e);
  const Logistic found = {v < 0.0f ? e * r : r, e * r * r};
  return found;
}

// The normal distribution: P(X <= v), within 5e-7 of its own size above v = -3 and 5e-6 above -13,
// and its density. Beyond 13.2 the exponential is 0. The polynomial is a near-minimax fit of
// erfcx(v / sqrt(2)) / 2 / t in t = 1 / (1 + 0.3 v) over [0, 13.4], 4e-9 of its size off.
struct Normal {
  float below, density;
};
FA_FN Normal normal(float v) {
  const float size = magnitude(v), e = exponential(-0.5f * v * v);
  const float t = 1.0f / multiplied_added(0.3f, size, 1.0f);
  float p = -0.0205899527f;
  p = multiplied_added(p, t, 0.112246938f);
  p = multiplied_added(p, t, -0.227752403f);
  p = multiplied_added(p, t, 0.191143269f);
  p = multiplied_added(p, t, -0.0788656909f);
  p = multiplied_added(p, t, 0.0958427348f);
  p = multiplied_added(p, t, 0.0785038921f);
  p = multiplied_added(p, t, 0.110209602f);
  p = multiplied_added(p, t, 0.119575098f);
  p = multiplied_added(p, t, 0.119686511f);
  const float tail = e * (p * t);
  const Normal found = {v < 0.0f ? tail : 1.0f - tail, 0.39894228040143268f * e};
  return found;
}

// gelu's tanh form is v * logistic(this): (1 + tanh(u)) / 2 = logistic(2 u).
FA_FN float gelu_argument(float v) {
  return 1.5957691216057308f * v * multiplied_added(0.044715f * v, v, 1.0f);
}

template <int ACT> FA_FN float activated(float v) {
  if (ACT == kRelu) return v > 0.0f ? v : (v == v ? 0.0f : v);
  if (ACT == kRelu6) return v == v ? clamp(v, 0.0f, 6.0f) : v;
  if (ACT == kSilu) return v * logistic(v).value;
  if (ACT == kGelu) return v * normal(v).below;
  if (ACT == kGeluTanh) return v * logistic(gelu_argument(v)).value;
  // Divided: the error of a rounded sixth would have one sign everywhere, and a mean would keep it.
  if (ACT == kHardswish) return v * (clamp(v + 3.0f, 0.0f, 6.0f) / 6.0f);
  return v;
}

// d act / d input of those whose input is saved. No product of 0 and an overflow: finite inputs of
// any size have finite slopes.
template <int ACT> FA_FN float slope(float v) {
  if (ACT == kSilu) {
    const Logistic l = logistic(v);
    return multiplied_added(v, l.slope, l.value);
  }
  if (ACT == kGelu) {
    const Normal n = normal(v);
    return multiplied_added(v, n.density, n.below);
  }
  if (ACT == kGeluTanh) {
    const Logistic l = logistic(gelu_argument(v));
    const float inner = multiplied_added(0.21406445f, lesser(v * v, 1e4f), 1.5957691216057308f);
    return multiplied_added(v * l.slope, inner, l.value);
  }
  if (ACT == kHardswish)
    return v <= -3.0f ? 0.0f : (v >= 3.0f ? 1.0f : v / 3.0f + 0.5f);
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
