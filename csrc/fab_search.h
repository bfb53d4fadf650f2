// The projection onto a hyperplane and a box, over an unsorted sample that the caller sums: CPU and
// CUDA alike. `size` is |w|, `room` how far a coordinate can go towards the hyperplane, and `gap`
// what sum size * move has to be.
#pragma once
#include <stdint.h>
#include <string.h>

#include "math.h"

#ifdef __CUDACC__
#define FAB_FN static __device__ __forceinline__
#else
#define FAB_FN static inline __attribute__((always_inline))
#endif

namespace fastard {
namespace FA_ISA {

constexpr double kTinyLength = 1e-8;  // the official floor of a projection's norm
constexpr double kTinySlope = 1e-8;   // in L2 and L1, coordinates of smaller |w| stay

// How far each coordinate goes: Linf min(lambda, room), L2 min(lambda * size, room); L1 all its
// room where size >= high, a share of it from low on.
template <class A> struct FabCut {
  A lambda, low, high, share;
};
// Two sums over a sample and a count.
struct FabSums {
  double one, two;
  int64_t count;
};

template <class A, int NORM> FAB_FN bool fab_stays(A size) {
  return !(size > A(NORM == kLinf ? 0.0 : kTinySlope));
}
template <class A, int NORM> FAB_FN bool fab_full(A size, A room, A lambda) {
  return NORM == kLinf ? room <= lambda : lambda * size >= room;
}
template <class A, int NORM> FAB_FN A fab_move(A size, A room, const FabCut<A>& cut) {
  A move;
  if (NORM == kL1)
    move = size >= cut.high ? room : (size >= cut.low ? room * cut.share : A(0));
  else
    move = lesser(NORM == kLinf ? cut.lambda : cut.lambda * size, room);
  return fab_stays<A, NORM>(size) ? A(0) : move;
}
// A coordinate that stays has no end to its room in L2, whose slope it is part of.
template <class A, int NORM> FAB_FN A fab_room(A w, A side, A point, A lo, A hi) {
  if (NORM == kL2 && fab_stays<A, NORM>(magnitude(w))) return A(1e30);
  return greater(side * w > A(0) ? point - lo : hi - point, A(0));
}
template <class A> FAB_FN A fab_finite(A v) { return finite(v) ? v : A(0); }

// Linf, L2: `sums(lambda)` gives what the full coordinates contribute, and the others' slope. The
// total is concave and piecewise linear in lambda: Newton's steps from 0 only go up, and end on
// the segment that holds the solution.
template <class A, class Sums> FAB_FN A fab_lambda(double gap, Sums sums) {
  A lambda = 0;
  for (int step = 0; step < 200; ++step) {
    const FabSums s = sums(lambda);
    if (!(s.two > 0)) break;
    const A next = A((gap - s.one) / s.two);
    if (!(next > lambda)) break;
    lambda = next;
  }
  return lambda;
}

template <class A> struct FabKey;
template <> struct FabKey<float> {
  typedef uint32_t Bits;
  static constexpr int kMantissa = 23;
};
template <> struct FabKey<double> {
  typedef uint64_t Bits;
  static constexpr int kMantissa = 52;
};
template <class To, class From> FAB_FN To fab_bits(From v) {
  To to;
  memcpy(&to, &v, sizeof(to));
  return to;
}

// L1: `sums(key)` gives the mass sum size * room of the coordinates of at least this size, and how
// many they are; `most` is the largest size. The edge is searched among the sizes' bits, which
// order as they do: octave by octave, each twice as many as the last, then by halves.
template <class A, class Sums> FAB_FN FabCut<A> fab_cut(double gap, A most, Sums sums) {
  typedef typename FabKey<A>::Bits U;
  U high = fab_bits<U>(most) + 1, low = 0, stride = U(1) << FabKey<A>::kMantissa;
  FabSums above = {0, 0, 0}, below = {0, 0, 0};
  bool bounded = false;
  while (!bounded) {
    const U key = high > stride ? high - stride : 0;
    const FabSums s = sums(fab_bits<A>(key));
    if (s.one >= gap || key == 0) {
      bounded = true;
      low = key;
      below = s;
    } else {
      high = key;
      above = s;
      stride += stride;
    }
  }
  const bool enough = below.one > gap;
  while (enough && high - low > 1 && below.count - above.count > 1) {
    const U key = low + (high - low) / 2;
    const FabSums s = sums(fab_bits<A>(key));
    if (s.one >= gap) {
      low = key;
      below = s;
    } else {
      high = key;
      above = s;
    }
  }
  const double between = below.one - above.one, left = gap - above.one;
  const A share = enough && left < between ? A(left / between) : A(1);
  return {A(0), fab_bits<A>(low), fab_bits<A>(high), share};
}

// The convex step's weight of the original point.
template <class A> FAB_FN A fab_alpha(A one, A two, A most) {
  one = greater(one, A(kTinyLength));
  two = greater(two, A(kTinyLength));
  return lesser(greater(one / (one + two), A(0)), most);
}
template <class A> FAB_FN A fab_mixed(A at, A d_at, A x, A d_x, A eta, A alpha, A lo, A hi) {
  return clamp((at + eta * d_at) * (A(1) - alpha) + (x + eta * d_x) * alpha, lo, hi);
}

}  // namespace FA_ISA
}  // namespace fastard
