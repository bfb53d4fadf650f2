// distill_kl summed over all rows in the one launch that also writes both gradients. Bytes a class,
// fp32: 8 read + 4 written for each gradient (fp32 for half precision logits too); of the partial
// sums 16 a block. Expected: bound by memory, at 85 % or more of the copy bandwidth for 1,000
// classes ([8192, 1000] in fp32 with both gradients: 131 MB, 39 us at 3.35 TB/s), then 1 to 2 us
// in which the last block adds the partial sums.
#include "kl.cuh"

namespace fastard {
namespace device {

constexpr int kAhead = 8;  // loads in flight of partial sums

// Adds up the blocks' `mine`. Whoever takes the last ticket knows that all partial sums lie in
// memory; it adds them in the order of the blocks, so that every run gives the same bits.
template <class A>
__device__ __forceinline__ void sum_over_grid(double mine, Team& team, const SumArgs& s) {
  __shared__ bool last;
  const double sum = team.over<Add>(mine);
  if (threadIdx.x == 0) {
    s.partials[blockIdx.x] = sum;
    __threadfence();
    // Wraps to zero with the last block: ready for the stream's next launch.
    last = atomicInc(s.ticket, gridDim.x - 1) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (!last) return;
  double total = 0;
  for (int64_t from = threadIdx.x; from < gridDim.x; from += kAhead * blockDim.x) {
    double loaded[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int64_t i = from + k * blockDim.x;
      loaded[k] = i < gridDim.x ? s.partials[i] : 0.0;
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) total += loaded[k];
  }
  total = team.over<Add>(total);
  if (threadIdx.x == 0) *static_cast<A*>(s.total) = A(total);
}

template <class A, int K> __global__ void __launch_bounds__(kRowThreads, kWarpBlocks<K>)
    distill_warps(const __grid_constant__ RowArgs a, bool wide, SumArgs s) {
  const int64_t r = int64_t(blockIdx.x) * (kRowThreads / 32) + threadIdx.x / 32;
  A loss = 0;
  if (r < a.rows) {
    WarpRow<A, K, true> row(a, r, wide, KL::factors<A>(a));
    KL::run<A>(row, a, r, [&](A found) { loss = found; });
  }
  Team team(0, 1);
  sum_over_grid<A>(threadIdx.x % 32 == 0 ? double(loss) : 0.0, team, s);
}
template <class A> __global__ void __launch_bounds__(kBlockThreads, 1)
    distill_block(const __grid_constant__ RowArgs a, bool wide, SumArgs s) {
  BlockRow<A, true> row(a, blockIdx.x, wide, KL::factors<A>(a));
  A loss = 0;
  KL::run<A>(row, a, blockIdx.x, [&](A found) { loss = found; });
  sum_over_grid<A>(threadIdx.x == 0 ? double(loss) : 0.0, row.team, s);
}

template <class A> struct DistillKernels {
  template <int K> static constexpr auto warp = distill_warps<A, K>;
  static constexpr auto block = distill_block<A>;
};

}  // namespace device

int cuda_distill_kl(const RowArgs& a, const SumArgs& s, void* stream) {
  using namespace device;
  const bool wide = a.logits_type == kF64;
  // All bits zero: the empty sum.
  if (a.rows == 0)
    return cudaMemsetAsync(s.total, 0, wide ? sizeof(double) : sizeof(float),
                           static_cast<cudaStream_t>(stream));
  return wide ? launch_rows<double, DistillKernels<double>>(a, stream, s)
              : launch_rows<float, DistillKernels<float>>(a, stream, s);
}

}  // namespace fastard
