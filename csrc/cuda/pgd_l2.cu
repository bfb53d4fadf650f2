// The L2 step: a block a sample. Bytes an element, fp32: 12 read + 4 written, once, for samples
// that a block's registers hold (12,288 elements: 3x64x64); expected: 80 % or more of the copy
// bandwidth (1,024x3x64x64: 201 MB, 75 us at 80 % of 3.35 TB/s). Larger samples are read twice, by
// a cluster of 8 blocks where the device has them: 16 samples of 3x224x224 in flight are 29 MB, so
// that the second reading is the L2 cache's (128x3x224x224: 308 MB, 115 us at 80 %).
#include "step.cuh"
#include "team.cuh"

namespace fastard {
namespace device {

// Inner products of a gradient and a displacement with themselves and each other.
template <class A> struct Products {
  A gg, gd, dd;
  template <class X, class G, int V> __device__ __forceinline__ void add(const Group<A, X, V>& v,
                                                                         const Group<A, G, V>& g,
                                                                         const Group<A, X, V>& x) {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const A d = v[j] - x[j];
      gg += g[j] * g[j];
      gd += g[j] * d;
      dd += d * d;
    }
  }
};

// The step's two factors, from the team's sums.
template <class A> struct Move {
  A scale, shrink, lo, hi;
  __device__ __forceinline__ Move(const StepArgs& a, int64_t sample, const Products<A>& mine,
                                  Team& team)
      : lo(A(a.clip_min)), hi(A(a.clip_max)) {
    const A eps = per_sample<A>(a.eps, sample), alpha = per_sample<A>(a.alpha, sample);
    double sums[3] = {mine.gg, mine.gd, mine.dd};
    team.over<Add>(sums);
    const double gg = sums[0], gd = sums[1], dd = sums[2];
    scale = l2_scale(alpha, A(root(gg)));
    // ||d + s g||^2 from the three sums, as on the CPU: no second reduction.
    double moved = scale == A(0) ? dd : dd + double(scale) * (2 * gd + double(scale) * gg);
    moved = moved > 0 ? moved : 0;
    shrink = l2_shrink(eps, A(root(moved)));
  }
  template <class X, class G, int V>
  __device__ __forceinline__ void write(const StepArgs& a, int64_t index, const Group<A, X, V>& v,
                                        const Group<A, G, V>& g, const Group<A, X, V>& x) const {
    A out[V];
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const A d = l2_moved(v[j], g[j], scale) - x[j];
      out[j] = clamp(x[j] + d * shrink, lo, hi);
    }
    write_step<X>(a, index, out, x);
  }
};

template <class S> __global__ void __launch_bounds__(kResidentThreads, 1)
    l2_resident(const __grid_constant__ StepArgs a) {
  using A = typename S::A;
  constexpr int V = S::V, R = kHeldGroups<S>;
  const int64_t sample = blockIdx.x, base = sample * a.n;
  const int n = int(a.n), stride = blockDim.x * V, first = threadIdx.x * V;
  Group<A, typename S::X, V> v[R], x[R];
  Group<A, typename S::G, V> g[R];
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int i = first + r * stride;
    if (i < n) {
      v[r].load(a.x_adv, a.x_type, base + i);
      g[r].load(a.grad, a.grad_type, base + i);
      x[r].load(a.x, a.x_type, base + i);
    }
  }
  Products<A> sums = {0, 0, 0};
#pragma unroll
  for (int r = 0; r < R; ++r)
    if (first + r * stride < n) sums.add(v[r], g[r], x[r]);
  Team team(0, 1);
  const Move<A> move(a, sample, sums, team);
#pragma unroll
  for (int r = 0; r < R; ++r)
    if (first + r * stride < n) move.write(a, base + first + r * stride, v[r], g[r], x[r]);
}

// Any size: `size` blocks share a sample and read it twice.
template <class S> __global__ void __launch_bounds__(kStreamedThreads, 1)
    l2_streamed(const __grid_constant__ StepArgs a, int size) {
  using A = typename S::A;
  constexpr int V = S::V;
  const int64_t sample = blockIdx.x / size, base = sample * a.n;
  const int rank = int(blockIdx.x % size);
  const int64_t stride = int64_t(size) * blockDim.x * V;
  const int64_t first = (int64_t(rank) * blockDim.x + threadIdx.x) * V;
  Products<A> sums = {0, 0, 0};
#pragma unroll 2
  for (int64_t i = first; i < a.n; i += stride) {
    Group<A, typename S::X, V> v, x;
    Group<A, typename S::G, V> g;
    v.load(a.x_adv, a.x_type, base + i);
    g.load(a.grad, a.grad_type, base + i);
    x.load(a.x, a.x_type, base + i);
    sums.add(v, g, x);
  }
  Team team(rank, size);
  const Move<A> move(a, sample, sums, team);
#pragma unroll 1
  for (int64_t i = first; i < a.n; i += stride) {
    Group<A, typename S::X, V> v, x;
    Group<A, typename S::G, V> g;
    v.load(a.x_adv, a.x_type, base + i);
    g.load(a.grad, a.grad_type, base + i);
    x.load(a.x, a.x_type, base + i);
    move.write(a, base + i, v, g, x);
  }
  team.leave();
}

struct L2Step {
  template <class S> static constexpr auto resident() { return l2_resident<S>; }
  template <class S> static constexpr auto streamed() { return l2_streamed<S>; }
};

int l2_step_launch(const StepArgs& a, void* stream) {
  return with_shape(a.x_type, a.grad_type, groupable(a, a.n), [&](auto shape) {
    using S = decltype(shape);
    return launch_samples<S, L2Step>(a, stream);
  });
}

}  // namespace device
}  // namespace fastard
