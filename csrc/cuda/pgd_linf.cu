// The Linf step. Bytes an element, fp32: 12 read (x_adv, grad, x) + 4 written, 14 with a half
// precision gradient, + the second output's. Expected: bound by memory, at 90 % or more of the
// copy bandwidth from 64 MB on (3.35 TB/s: 1.9 us for 128x3x32x32 if nothing were cached, which
// a launch's own time exceeds; 23 us for 32x3x224x224).
#include "step.cuh"

namespace fastard {
namespace device {

// Small blocks spread the launch-bound sizes over all multiprocessors.
constexpr int kThreads = 128;

// Every thread has the loads of U groups (3 U of up to 16 bytes) in flight.
template <class S, int U> __global__ void __launch_bounds__(kThreads, 1)
    linf_kernel(const __grid_constant__ StepArgs a, int64_t groups) {
  using A = typename S::A;
  constexpr int V = S::V;
  const A lo = A(a.clip_min), hi = A(a.clip_max);
  const bool apart = (a.eps.data && a.eps.stride) || (a.alpha.data && a.alpha.stride);
  const int64_t first = int64_t(blockIdx.x) * (kThreads * U) + threadIdx.x;
  Group<A, typename S::X, V> v[U], x[U];
  Group<A, typename S::G, V> g[U];
#pragma unroll
  for (int u = 0; u < U; ++u) {
    const int64_t group = first + u * kThreads;
    if (group < groups) {
      v[u].load(a.x_adv, a.x_type, group * V);
      g[u].load(a.grad, a.grad_type, group * V);
      x[u].load(a.x, a.x_type, group * V);
    }
  }
#pragma unroll
  for (int u = 0; u < U; ++u) {
    const int64_t group = first + u * kThreads;
    if (group >= groups) break;
    const int64_t sample = apart ? int64_t(uint64_t(group * V) / uint64_t(a.n)) : 0;
    const A eps = per_sample<A>(a.eps, sample), alpha = per_sample<A>(a.alpha, sample);
    A out[V];
#pragma unroll
    for (int j = 0; j < V; ++j) out[j] = linf_step(v[u][j], g[u][j], x[u][j], eps, alpha, lo, hi);
    write_step<typename S::X>(a, group * V, out, x[u]);
  }
}

int linf_step_launch(const StepArgs& a, void* stream) {
  const bool apart = (a.eps.data && a.eps.stride) || (a.alpha.data && a.alpha.stride);
  // With values per sample a group must not straddle two.
  return with_shape(a.x_type, a.grad_type, groupable(a, apart ? a.n : a.batch * a.n),
                    [&](auto shape) {
                      using S = decltype(shape);
                      constexpr int U = S::V == 1 ? 4 : 2;
                      const int64_t groups = a.batch * a.n / S::V;
                      return launch(linf_kernel<S, U>, ceil_div(groups, kThreads * U), kThreads, 0,
                                    1, stream, a, groups);
                    });
}

}  // namespace device
}  // namespace fastard
