// The formulas of every op, once for CPU and CUDA: no tensor, no torch, no CUDA runtime.
// FA_ISA names the including object's namespace: a linker that merged inline functions across
// objects could keep an AVX-512 copy for every CPU.
#pragma once
#include <math.h>
#include <stdint.h>

#ifndef FA_ISA
#error "define FA_ISA before including math.h"
#endif
#ifdef __CUDACC__
#define FA_FN static __host__ __device__ __forceinline__
#else
#define FA_FN static inline __attribute__((always_inline))
#endif

namespace fastard {
namespace FA_ISA {

constexpr double kTinyNorm = 1e-12;   // AutoAttack's guard of ||g||_2 and of DLR's denominator
constexpr double kTinyCount = 1e-10;  // APGD-L1's guard of the number of moved coordinates

template <class A> FA_FN A lesser(A a, A b) { return a < b ? a : b; }
template <class A> FA_FN A greater(A a, A b) { return a > b ? a : b; }
template <class A> FA_FN A clamp(A v, A lo, A hi) {
  v = v < lo ? lo : v;
  return v > hi ? hi : v;
}
template <class A> FA_FN A magnitude(A v) { return v < A(0) ? -v : v; }
template <class A> FA_FN bool finite(A v) { return v - v == A(0); }

// sign(g) * alpha with sign(NaN) = 0: a NaN gradient moves nothing.
template <class A> FA_FN A signed_step(A g, A alpha) {
  return g > A(0) ? alpha : (g < A(0) ? -alpha : A(0));
}

// Linf: clip(clip(x_adv + alpha*sign(g), x - eps, x + eps), lo, hi), in the published loops' order.
template <class A> FA_FN A linf_step(A x_adv, A g, A x, A eps, A alpha, A lo, A hi) {
  return clamp(clamp(x_adv + signed_step(g, alpha), x - eps, x + eps), lo, hi);
}

// APGD's momentum: `fresh` of the step just taken and `rest` of the one before.
template <class A> FA_FN A apgd_mixed(A v, A moved, A old, A fresh, A rest) {
  return v + (moved - v) * fresh + (v - old) * rest;
}

// L2: alpha / (||g|| + 1e-12), or 0 where the norm is not finite.
template <class A> FA_FN A l2_scale(A alpha, A grad_norm) {
  return finite(grad_norm) ? alpha / (grad_norm + A(kTinyNorm)) : A(0);
}
// L2: what shrinks a displacement of this norm into the ball.
template <class A> FA_FN A l2_shrink(A eps, A norm) {
  return lesser(A(1), eps / (norm + A(kTinyNorm)));
}
// A gradient of which no finite multiple is taken contributes nothing (0 * inf would be NaN).
template <class A> FA_FN A l2_moved(A x_adv, A g, A scale) {
  return scale == A(0) ? x_adv : x_adv + scale * g;
}

// L1: |g| with NaN and -0 counted as 0, the key by which coordinates are ranked, by its bits too.
template <class A> FA_FN A l1_key(A g) { return g == g ? magnitude(g) + A(0) : A(0); }
// L1: the room left for coordinate x when it moves by u, inside the box.
template <class A> FA_FN A l1_room(A u, A x, A lo, A hi) { return u > A(0) ? hi - x : x - lo; }
// L1: |u| after the soft threshold lambda, within its room: the projection onto ball and box.
template <class A> FA_FN A l1_shrunk(A abs_u, A room, A lambda) {
  return lesser(greater(abs_u - lambda, A(0)), room);
}

// L1: whether a coordinate displaced by u, of which `kept` is left, differs from x once rounded as
// the official code rounds it, (x + u) - (|u| - kept): it counts those, too, that rounding alone
// moves.
template <class A> FA_FN bool l1_moved(A x, A u, A kept) {
  const A there = x + u;
  return kept > A(0) || there - u != x;
}

template <class A> FA_FN A normalised(A v, A mean, A std) { return (v - mean) / std; }

// Uniform noise u in [0, 1) to [-eps, eps], rounded as torch.rand(...) * 2 * eps - eps is.
template <class A> FA_FN A uniform_offset(A u, A eps) { return u * A(2) * eps - eps; }

#ifdef __CUDACC__
FA_FN float exponential(float v) { return expf(v); }
FA_FN float logarithm(float v) { return logf(v); }
#else
FA_FN uint32_t bits_of(float v) {
  union {
    float f;
    uint32_t u;
  } b = {v};
  return b.u;
}
FA_FN float float_of(uint32_t v) {
  union {
    uint32_t u;
    float f;
  } b = {v};
  return b.f;
}
// How the two functions below look into a float, or into a vector of floats.
template <class F> struct Bits;
template <> struct Bits<float> {
  typedef uint32_t Words;
  static Words of(float v) { return bits_of(v); }
  static float to_float(Words v) { return float_of(v); }
  // floor(v / 2^23) of a two's complement, as a float.
  static float exponent(Words v) { return float(int32_t(v) >> 23); }
};

// exp for v <= 0 (a max was subtracted), 0 below -87.3; errors <= 2 ulp; NaN stays NaN. F is float
// or a vector of floats that Bits looks into.
template <class F> FA_FN F exponential_f32(F v) {
  const F shifted = v * 1.44269504088896341f + 12582912.0f;
  const F n = shifted - 12582912.0f;
  const F r = (v - n * 0.693359375f) + n * 2.12194440e-4f;
  F p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const F power = Bits<F>::to_float((Bits<F>::of(shifted) - 0x4B400000u + 127u) << 23);
  return v < -87.3f ? F{} : p * power;
}
// log of positive normal numbers without a branch (Cephes' polynomial); errors <= 2 ulp; NaN stays.
template <class F> FA_FN F logarithm_f32(F v) {
  const typename Bits<F>::Words above_root = Bits<F>::of(v) - 0x3F3504F3u;  // sqrt(1/2)
  const F e = Bits<F>::exponent(above_root);
  const F x = Bits<F>::to_float((above_root & 0x007FFFFFu) + 0x3F3504F3u) - 1.0f, x2 = x * x;
  F p = x * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * x + 1.1676998740e-1f;
  p = p * x - 1.2420140846e-1f;
  p = p * x + 1.4249322787e-1f;
  p = p * x - 1.6668057665e-1f;
  p = p * x + 2.0000714765e-1f;
  p = p * x - 2.4999993993e-1f;
  p = p * x + 3.3333331174e-1f;
  p = p * x * x2 - e * 2.12194440e-4f;
  const F log = (x + (p - x2 * 0.5f)) + e * 0.693359375f;
  return v == v ? log : v;
}
FA_FN float exponential(float v) { return exponential_f32(v); }
FA_FN float logarithm(float v) { return logarithm_f32(v); }
#endif
FA_FN double exponential(double v) { return exp(v); }
FA_FN double logarithm(double v) { return log(v); }
FA_FN float root(float v) { return sqrtf(v); }
FA_FN double root(double v) { return sqrt(v); }

// One term of KL(p||q); p = 0 contributes nothing whatever q is, floor is RSLAD's log(p + floor).
template <class A> FA_FN A kl_term(A p, A log_p, A log_q) {
  return p > A(0) ? p * (log_p - log_q) : (p == p ? A(0) : p);
}
template <class A> FA_FN A floored_log(A p, A log_p, A floor) {
  return floor > A(0) ? logarithm(p + floor) : log_p;
}
// d KL / d teacher logit before the mean is removed: log(p + f) + p / (p + f) - log q.
template <class A> FA_FN A teacher_slope(A p, A log_pf, A log_q, A floor) {
  return log_pf - log_q + (floor > A(0) ? p / (p + floor) : A(1));
}

// CW margin, oriented for ascent: -max(side * (z_y - z_other) + kappa, 0); side = -1 when targeted.
template <class A> FA_FN A margin_loss(A z_y, A z_other, A kappa, A side) {
  return -greater(side * (z_y - z_other) + kappa, A(0));
}
template <class A> FA_FN bool margin_active(A z_y, A z_other, A kappa, A side) {
  return side * (z_y - z_other) + kappa > A(0);
}

// DLR of Croce & Hein 2020; the targeted form subtracts the mean of the 3rd and 4th largest.
template <class A> FA_FN A dlr_spread(A first, A third, A fourth, bool targeted) {
  return (targeted ? first - A(0.5) * (third + fourth) : first - third) + A(kTinyNorm);
}

}  // namespace FA_ISA
}  // namespace fastard
