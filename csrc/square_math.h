// Square Attack's formulas, for CPU and CUDA.
#pragma once
#include "math.h"

namespace fastard {
namespace FA_ISA {

// Numbers of a query before the channels' signs: a window's two offsets; in L2 and L1 two windows'
// and whether the pyramid is transposed.
constexpr int64_t kLinfPlaces = 2, kPairPlaces = 5;

// floor(u (size - side)): the last offset is never drawn unless it is the only one.
FA_FN int64_t window_offset(float u, int64_t room) { return int64_t(float(room) * u); }
template <class A> FA_FN A drawn_sign(float u) {
  const float t = 2.0f * u - 1.0f;
  return t > 0.0f ? A(1) : (t < 0.0f ? A(-1) : A(0));
}

// The larger, a NaN where either is one.
template <class A> FA_FN A greater_or_nan(A a, A b) { return b > a || b != b ? b : a; }

// Negative where the attack has its way.
template <class A> FA_FN A square_margin(A z_y, A z_other, bool targeted) {
  return targeted ? z_other - z_y : z_y - z_other;
}
// What a proposal must lower: cross-entropy raised, or towards a target lowered, or the margin.
template <class A> FA_FN A square_loss(A margin, A z_y, A top, A sum, bool ce, bool targeted) {
  if (!ce && !targeted) return margin;
  const A cross_entropy = logarithm(sum) - (z_y - top);
  return targeted ? cross_entropy : -cross_entropy;
}

// L2 and L1: the size, in its norm, that a channel's window is given.
template <class A> FA_FN A window_size(A eps, A image, A windows, A channels, bool l2) {
  if (l2) return root(greater(eps * eps - image * image, A(0)) / channels + windows * windows);
  return (greater(eps - image, A(0)) / channels + windows) * channels;
}
template <class A> FA_FN A power(A v, bool l2) { return l2 ? v * v : magnitude(v); }
template <class A> FA_FN A measure(A total, bool l2) { return l2 ? root(total) : total; }

}  // namespace FA_ISA
}  // namespace fastard
