// The start of an attack from given noise: uniform in Linf and Gaussian element by element, L2 a
// block a sample. Bytes an element, fp32: 8 read (x, noise) + 4 written, once, by one launch; L2
// samples beyond a block's registers (12,288 elements: 3x64x64) read the noise twice, by a cluster
// of 8 blocks where the device has them. Expected: bound by memory, at 90 % (L2: 80 %) or more of
// the copy bandwidth from 64 MB on (3.35 TB/s: 1.4 us for 128x3x32x32 if nothing were cached, which
// a launch's own time exceeds; 17 us for 32x3x224x224).
#include "start.cuh"
#include "team.cuh"

namespace fastard {
namespace device {

// Small blocks spread the launch-bound sizes over all multiprocessors.
constexpr int kThreads = 128;

// Every thread has the loads of U groups (2 U of up to 16 bytes, or 32 of fp32 noise) in flight.
template <class S, int U> __global__ void __launch_bounds__(kThreads, 1)
    start_kernel(const __grid_constant__ StartArgs a, int64_t groups) {
  using A = typename S::A;
  constexpr int V = S::V;
  const bool gaussian = a.kind == kGaussian, apart = !gaussian && a.eps.data && a.eps.stride;
  const A sigma = A(a.sigma);
  const int64_t first = int64_t(blockIdx.x) * (kThreads * U) + threadIdx.x;
  Group<A, typename S::X, V> x[U];
  Group<A, typename S::G, V> noise[U];
#pragma unroll
  for (int u = 0; u < U; ++u) {
    const int64_t group = first + u * kThreads;
    if (group < groups) {
      x[u].load(a.x, a.x_type, group * V);
      noise[u].load(a.noise, a.noise_type, group * V);
    }
  }
#pragma unroll
  for (int u = 0; u < U; ++u) {
    const int64_t group = first + u * kThreads;
    if (group >= groups) break;
    const int64_t sample = apart ? int64_t(uint64_t(group * V) / uint64_t(a.n)) : 0;
    const A eps = per_sample<A>(a.eps, sample);
    A out[V];
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const A z = noise[u][j];
      out[j] = x[u][j] + (gaussian ? sigma * z : uniform_offset(z, eps));
    }
    write_start<typename S::X>(a, group * V, out, x[u]);
  }
}

template <class G, int V, class A>
__device__ __forceinline__ A squares(const Group<A, G, V>& noise) {
  A sum = 0;
#pragma unroll
  for (int j = 0; j < V; ++j) sum += noise[j] * noise[j];
  return sum;
}
// What the noise is multiplied by, from the team's sum of squares.
template <class A>
__device__ __forceinline__ A l2_factor(const StartArgs& a, int64_t sample, A mine, Team& team) {
  const A norm = A(root(team.over<Add>(double(mine))));
  const A radius = load_any<A>(a.radius, a.radius_type, sample);
  return l2_scale(radius * per_sample<A>(a.eps, sample), norm);
}
template <class X, class G, int V, class A>
__device__ __forceinline__ void write_scaled(const StartArgs& a, int64_t index, A factor,
                                             const Group<A, X, V>& x, const Group<A, G, V>& noise) {
  A out[V];
#pragma unroll
  for (int j = 0; j < V; ++j) out[j] = x[j] + factor * noise[j];
  write_start<X>(a, index, out, x);
}

template <class S> __global__ void __launch_bounds__(kResidentThreads, 1)
    l2_start_resident(const __grid_constant__ StartArgs a) {
  using A = typename S::A;
  constexpr int V = S::V, R = kHeldGroups<S>;
  const int64_t sample = blockIdx.x, base = sample * a.n;
  const int n = int(a.n), stride = blockDim.x * V, first = threadIdx.x * V;
  Group<A, typename S::X, V> x[R];
  Group<A, typename S::G, V> noise[R];
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int i = first + r * stride;
    if (i < n) {
      noise[r].load(a.noise, a.noise_type, base + i);
      x[r].load(a.x, a.x_type, base + i);
    }
  }
  A sum = 0;
#pragma unroll
  for (int r = 0; r < R; ++r)
    if (first + r * stride < n) sum += squares(noise[r]);
  Team team(0, 1);
  const A factor = l2_factor(a, sample, sum, team);
#pragma unroll
  for (int r = 0; r < R; ++r)
    if (first + r * stride < n) write_scaled(a, base + first + r * stride, factor, x[r], noise[r]);
}

// Any size: `size` blocks share a sample and read its noise twice.
template <class S> __global__ void __launch_bounds__(kStreamedThreads, 1)
    l2_start_streamed(const __grid_constant__ StartArgs a, int size) {
  using A = typename S::A;
  constexpr int V = S::V;
  const int64_t sample = blockIdx.x / size, base = sample * a.n;
  const int rank = int(blockIdx.x % size);
  const int64_t stride = int64_t(size) * blockDim.x * V;
  const int64_t first = (int64_t(rank) * blockDim.x + threadIdx.x) * V;
  Group<A, typename S::X, V> x;
  Group<A, typename S::G, V> noise;
  A sum = 0;
#pragma unroll 4
  for (int64_t i = first; i < a.n; i += stride) {
    noise.load(a.noise, a.noise_type, base + i);
    sum += squares(noise);
  }
  Team team(rank, size);
  const A factor = l2_factor(a, sample, sum, team);
#pragma unroll 2
  for (int64_t i = first; i < a.n; i += stride) {
    noise.load(a.noise, a.noise_type, base + i);
    x.load(a.x, a.x_type, base + i);
    write_scaled(a, base + i, factor, x, noise);
  }
  team.leave();
}

// f(Shape) where `run` elements from each sample's (or the batch's) start are to move in groups.
template <class F> int with_start_shape(const StartArgs& a, int64_t run, F f) {
  const bool grouped =
      groupable(a.x_type, run, uintptr_t(a.x_adv) | uintptr_t(a.x) | uintptr_t(a.noise));
  return with_shape(a.x_type, a.noise_type, grouped, f);
}

int elementwise_start_launch(const StartArgs& a, void* stream) {
  const bool apart = a.kind == kUniform && a.eps.data && a.eps.stride;
  // With values per sample a group must not straddle two.
  return with_start_shape(a, apart ? a.n : a.batch * a.n, [&](auto shape) {
    using S = decltype(shape);
    constexpr int U = S::V == 1 ? 4 : 2;
    const int64_t groups = a.batch * a.n / S::V;
    return launch(start_kernel<S, U>, ceil_div(groups, kThreads * U), kThreads, 0, 1, stream, a,
                  groups);
  });
}

struct L2Start {
  template <class S> static constexpr auto resident() { return l2_start_resident<S>; }
  template <class S> static constexpr auto streamed() { return l2_start_streamed<S>; }
};

int l2_start_launch(const StartArgs& a, void* stream) {
  return with_start_shape(a, a.n, [&](auto shape) {
    using S = decltype(shape);
    return launch_samples<S, L2Start>(a, stream);
  });
}

}  // namespace device

int cuda_random_start(const StartArgs& a, void* stream) {
  if (a.batch == 0 || a.n == 0) return cudaSuccess;
  if (a.kind == kGaussian || a.norm == kLinf) return device::elementwise_start_launch(a, stream);
  return a.norm == kL2 ? device::l2_start_launch(a, stream) : device::l1_start_launch(a, stream);
}

}  // namespace fastard
