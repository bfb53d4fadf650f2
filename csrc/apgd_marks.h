// How APGD's step sizes follow the losses, a sample at a time: for CPU and CUDA.
#pragma once
#include "apgd.h"
#include "math.h"

namespace fastard {
namespace FA_ISA {

// A sample's marks: read at once, decided on, written back.
template <class A> struct SampleMarks {
  A v[kMarks];
};

template <class A> FA_FN SampleMarks<A> read_marks(const A* at, int64_t batch) {
  SampleMarks<A> m;
  for (int k = 0; k < kMarks; ++k) m.v[k] = at[k * batch];
  return m;
}
template <class A> FA_FN void write_marks(const SampleMarks<A>& m, A* at, int64_t batch) {
  for (int k = 0; k < kMarks; ++k) at[k * batch] = m.v[k];
}

// Linf and L2: where the loss rose seldom since the last look, or neither best nor size changed.
template <class A> FA_FN void halve(SampleMarks<A>& m, A loss, int64_t window, A limit) {
  m.v[kRises] += loss > m.v[kPrevious] ? A(1) : A(0);
  m.v[kPrevious] = loss;
  if (!window) return;
  const bool stuck = m.v[kBack] == A(0) && m.v[kBestThen] >= m.v[kBestLoss];
  const bool halved = m.v[kRises] <= limit || stuck;
  m.v[kBack] = halved ? A(1) : A(0);
  m.v[kBestThen] = m.v[kBestLoss];
  m.v[kRises] = A(0);
  if (halved) m.v[kSize] = m.v[kSize] / A(2);
}

// L1: where fewer coordinates differ at the best point than before, the size starts anew.
template <class A> FA_FN void thin(SampleMarks<A>& m, A n) {
  const A moved = m.v[kMovedBest];
  const bool sparser = moved / m.v[kMovedThen] < A(0.95);
  m.v[kShare] = moved / n / A(1.5);
  m.v[kSize] = sparser ? m.v[kRadius] : greater(m.v[kSize] / A(1.5), m.v[kLeast]);
  m.v[kMovedThen] = moved;
  m.v[kBack] = sparser ? A(1) : A(0);
}

}  // namespace FA_ISA
}  // namespace fastard
