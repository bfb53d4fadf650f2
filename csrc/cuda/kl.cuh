// KL(p||q) of a row with both gradients, and the choice of a kernel by the row's length: what
// logit_loss and distill_kl share.
#pragma once
#include "launch.cuh"
#include "rows.cuh"

namespace fastard {
namespace device {

constexpr int kRowThreads = 128;    // 4 warps, a row each
constexpr int kLongRowBlocks = 3;   // on a multiprocessor: 168 registers hold 4 x 32 values
constexpr int kBlockThreads = 512;  // one row
template <int K> constexpr int kWarpBlocks = K == 32 ? kLongRowBlocks : 1;

template <class A> __device__ __forceinline__ A ascent(const RowArgs& a) {
  return a.targeted ? -A(a.scale) : A(a.scale);
}

// Writes the gradients that are wanted; every thread of the row calls done(loss), scaled, once and
// as soon as it is known.
struct KL {
  static constexpr bool kPaired = true;
  template <class A> static __device__ __forceinline__ Factors<A> factors(const RowArgs& a) {
    return {A(1) / A(a.temperature), A(1) / A(a.temperature)};
  }
  template <class A, class Row, class Done>
  static __device__ __forceinline__ void run(Row& row, const RowArgs& a, int64_t, Done done) {
    const A scale = ascent<A>(a), factor = scale * row.factors.student, floor = A(a.log_floor);
    row.soften();
    A loss = 0;
    row.template write<kStudent>(a.dlogits, [&](const Item<A>& i) {
      loss += kl_term(i.p, floored_log(i.p, i.t, floor), i.z);
      return (i.q - i.p) * factor;
    });
    done(row.sum(loss) * scale);
    if (!a.dtarget) return;
    const auto slope = [&](const Item<A>& i) {
      return teacher_slope(i.p, floored_log(i.p, i.t, floor), i.z, floor);
    };
    A mean = 0;
    row.each([&](const Item<A>& i) { mean += i.p > A(0) ? i.p * slope(i) : A(0); });
    mean = row.sum(mean);
    row.template write<kTeacher>(a.dtarget, [&](const Item<A>& i) {
      return i.p > A(0) ? i.p * (slope(i) - mean) * factor : i.p;
    });
  }
};

// Whether groups of 4 classes lie aligned in every tensor of every row.
inline bool groups_of_4(const RowArgs& a) {
  const uintptr_t places =
      uintptr_t(a.logits) | uintptr_t(a.target) | uintptr_t(a.dlogits) | uintptr_t(a.dtarget);
  return a.classes % 4 == 0 && places % 16 == 0;
}

// Kernels::warp<K> gives a warp a row of up to 32 K classes, Kernels::block a block a row.
template <class A, class Kernels, class... Rest>
int launch_rows(const RowArgs& a, void* stream, const Rest&... rest) {
  const bool wide = groups_of_4(a);
  const int64_t blocks = ceil_div(a.rows, kRowThreads / 32);
  const auto warps = [&](auto kernel) {
    return launch(kernel, blocks, kRowThreads, 0, 1, stream, a, wide, rest...);
  };
  if (a.classes > kMostPlaces) return cudaErrorInvalidValue;
  if (a.classes <= 32) return warps(Kernels::template warp<1>);
  if (a.classes <= 256) return warps(Kernels::template warp<8>);
  if constexpr (sizeof(A) == 4)
    if (a.classes <= 1024) return warps(Kernels::template warp<32>);
  return launch(Kernels::block, a.rows, kBlockThreads, 0, 1, stream, a, wide, rest...);
}

}  // namespace device
}  // namespace fastard
