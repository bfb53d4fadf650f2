// APGD's step with momentum. Bytes an element, fp32: 16 read (x_adv, x_old, grad, x) + 8 written.
// Linf streams; expected: bound by memory, at 90 % of the copy bandwidth from 64 MB on, below it
// by the launch. L2: a block a sample, held in its registers up to 12,288 elements; larger ones are
// read three times, by a cluster of 8 blocks where the device has them.
#include "../apgd.h"
#include "images.cuh"
#include "team.cuh"

namespace fastard {
namespace device {

constexpr int kThreads = 128;

template <class T, int V> struct Four {
  using A = T;
  Group<T, T, V> v, old, g, x;
  __device__ __forceinline__ void load(const ApgdStepArgs& a, int64_t index) {
    v.load(a.x_adv, a.type, index);
    old.load(a.x_old, a.type, index);
    g.load(a.grad, a.type, index);
    x.load(a.x, a.type, index);
  }
};

template <class T, int V>
__device__ __forceinline__ void put_values(void* to, int64_t index, const T (&value)[V]) {
  Pack<T, V> pack;
#pragma unroll
  for (int j = 0; j < V; ++j) pack.v[j] = value[j];
  put(to, index, pack);
}

template <class S> __global__ void __launch_bounds__(kThreads, 1)
    apgd_linf_kernel(const __grid_constant__ ApgdStepArgs a, int64_t groups) {
  using T = typename S::A;
  constexpr int V = S::V;
  const T lo = T(a.clip_min), hi = T(a.clip_max), fresh = T(a.fresh), rest = T(1.0 - a.fresh);
  const int64_t group = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (group >= groups) return;
  Four<T, V> in;
  in.load(a, group * V);
  const int64_t sample = int64_t(uint64_t(group * V) / uint64_t(a.n));
  const T eps = per_sample<T>(a.eps, sample), size = per_sample<T>(a.size, sample);
  T left[V], out[V];
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const T at = in.v[j], x = in.x[j];
    const T moved = linf_step(at, in.g[j], x, eps, size, lo, hi);
    const T mixed = apgd_mixed(at, moved, in.old[j], fresh, rest);
    left[j] = at;
    out[j] = clamp(clamp(mixed, x - eps, x + eps), lo, hi);
  }
  put_values<T, V>(a.x_old, group * V, left);
  put_values<T, V>(a.x_adv, group * V, out);
}

// What both L2 kernels compute of one sample.
template <class T> struct Projections {
  T scale, first, lo, hi, fresh, rest, eps;
  __device__ __forceinline__ Projections(const ApgdStepArgs& a, int64_t sample, T gg_, T gd_, T dd_,
                                         Team& team)
      : lo(T(a.clip_min)),
        hi(T(a.clip_max)),
        fresh(T(a.fresh)),
        rest(T(1.0 - a.fresh)),
        eps(per_sample<T>(a.eps, sample)) {
    double sums[3] = {double(gg_), double(gd_), double(dd_)};
    team.over<Add>(sums);
    const double gg = sums[0], gd = sums[1], dd = sums[2];
    scale = l2_scale(per_sample<T>(a.size, sample), T(root(gg)));
    double moved = scale == T(0) ? dd : dd + double(scale) * (2 * gd + double(scale) * gg);
    moved = moved > 0 ? moved : 0;
    first = l2_shrink(eps, T(root(moved)));
  }
  __device__ __forceinline__ T mixed(T at, T g, T x, T old) const {
    const T d = l2_moved(at, g, scale) - x;
    return apgd_mixed(at, clamp(x + d * first, lo, hi), old, fresh, rest);
  }
  __device__ __forceinline__ T second(T square, Team& team) const {
    return l2_shrink(eps, T(root(team.over<Add>(double(square)))));
  }
  __device__ __forceinline__ T inside(T mixed, T x, T shrink) const {
    return clamp(x + (mixed - x) * shrink, lo, hi);
  }
};

template <class S> __global__ void __launch_bounds__(kResidentThreads, 1)
    apgd_l2_resident(const __grid_constant__ ApgdStepArgs a) {
  using T = typename S::A;
  constexpr int V = S::V, R = kHeldGroups<S>;
  const int64_t sample = blockIdx.x, base = sample * a.n;
  const int n = int(a.n), stride = blockDim.x * V, first = threadIdx.x * V;
  // x_adv and, once it is known, the mixture.
  T v[R][V];
  Group<T, T, V> g[R], x[R];
  T gg = 0, gd = 0, dd = 0;
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int i = first + r * stride;
    if (i < n) {
      const Pack<T, V> at = fetch<T, V>(a.x_adv, base + i);
#pragma unroll
      for (int j = 0; j < V; ++j) v[r][j] = at.v[j];
      g[r].load(a.grad, a.type, base + i);
      x[r].load(a.x, a.type, base + i);
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r)
    if (first + r * stride < n)
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const T d = v[r][j] - x[r][j];
        gg += g[r][j] * g[r][j];
        gd += g[r][j] * d;
        dd += d * d;
      }
  Team team(0, 1);
  const Projections<T> to(a, sample, gg, gd, dd, team);
  T square = 0;
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int i = first + r * stride;
    if (i < n) {
      const Pack<T, V> old = fetch<T, V>(a.x_old, base + i);
      put_values<T, V>(a.x_old, base + i, v[r]);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        v[r][j] = to.mixed(v[r][j], g[r][j], x[r][j], old.v[j]);
        const T left = v[r][j] - x[r][j];
        square += left * left;
      }
    }
  }
  const T shrink = to.second(square, team);
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int i = first + r * stride;
    if (i < n) {
#pragma unroll
      for (int j = 0; j < V; ++j) v[r][j] = to.inside(v[r][j], x[r][j], shrink);
      put_values<T, V>(a.x_adv, base + i, v[r]);
    }
  }
}

// Any size: `size` blocks share a sample. The mixture waits in x_adv for its norm.
template <class S> __global__ void __launch_bounds__(kStreamedThreads, 1)
    apgd_l2_streamed(const __grid_constant__ ApgdStepArgs a, int size) {
  using T = typename S::A;
  constexpr int V = S::V;
  const int64_t sample = blockIdx.x / size, base = sample * a.n;
  const int rank = int(blockIdx.x % size);
  const int64_t stride = int64_t(size) * blockDim.x * V;
  const int64_t begin = (int64_t(rank) * blockDim.x + threadIdx.x) * V;
  T gg = 0, gd = 0, dd = 0;
#pragma unroll 1
  for (int64_t i = begin; i < a.n; i += stride) {
    Group<T, T, V> v, g, x;
    v.load(a.x_adv, a.type, base + i);
    g.load(a.grad, a.type, base + i);
    x.load(a.x, a.type, base + i);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const T d = v[j] - x[j];
      gg += g[j] * g[j];
      gd += g[j] * d;
      dd += d * d;
    }
  }
  Team team(rank, size);
  const Projections<T> to(a, sample, gg, gd, dd, team);
  T square = 0;
#pragma unroll 1
  for (int64_t i = begin; i < a.n; i += stride) {
    Four<T, V> in;
    in.load(a, base + i);
    T left[V], mixed[V];
#pragma unroll
    for (int j = 0; j < V; ++j) {
      left[j] = in.v[j];
      mixed[j] = to.mixed(in.v[j], in.g[j], in.x[j], in.old[j]);
      square += (mixed[j] - in.x[j]) * (mixed[j] - in.x[j]);
    }
    put_values<T, V>(a.x_old, base + i, left);
    put_values<T, V>(a.x_adv, base + i, mixed);
  }
  const T shrink = to.second(square, team);
#pragma unroll 1
  for (int64_t i = begin; i < a.n; i += stride) {
    Group<T, T, V> v, x;
    v.load(a.x_adv, a.type, base + i);
    x.load(a.x, a.type, base + i);
    T out[V];
#pragma unroll
    for (int j = 0; j < V; ++j) out[j] = to.inside(v[j], x[j], shrink);
    put_values<T, V>(a.x_adv, base + i, out);
  }
  team.leave();
}

struct ApgdL2 {
  template <class S> static constexpr auto resident() { return apgd_l2_resident<S>; }
  template <class S> static constexpr auto streamed() { return apgd_l2_streamed<S>; }
};

template <class S> int apgd_launch(const ApgdStepArgs& a, void* stream) {
  if (a.norm == kL2) return launch_samples<S, ApgdL2>(a, stream);
  const int64_t groups = a.batch * a.n / S::V;
  return launch(apgd_linf_kernel<S>, ceil_div(groups, kThreads), kThreads, 0, 1, stream, a, groups);
}

}  // namespace device

int cuda_apgd_step(const ApgdStepArgs& a, void* stream) {
  using namespace device;
  const uintptr_t places =
      uintptr_t(a.x_adv) | uintptr_t(a.x_old) | uintptr_t(a.grad) | uintptr_t(a.x);
  // A group must not straddle two samples: sizes are each sample's own.
  if (a.type == kF64) return apgd_launch<Shape<double, double, 1>>(a, stream);
  if (groupable(a.type, a.n, places)) return apgd_launch<Shape<float, float, 4>>(a, stream);
  return apgd_launch<Shape<float, float, 1>>(a, stream);
}

}  // namespace fastard
