// Reductions over a warp, a block, or a cluster of blocks. Every thread gets the same bits, in a
// fixed order: the results are deterministic and loops may branch on them.
#pragma once
#include <math.h>
#include <stdint.h>

#include <type_traits>

namespace fastard {
namespace device {

struct Add {
  template <class T> static __device__ __forceinline__ T identity() { return T(0); }
  template <class T> static __device__ __forceinline__ T of(T a, T b) { return a + b; }
};
// NaN loses, on either side: threads must agree on the result.
struct Max {
  template <class T> static __device__ __forceinline__ T identity() {
    if constexpr (std::is_floating_point_v<T>)
      return -T(INFINITY);
    else
      return INT32_MIN;
  }
  template <class T> static __device__ __forceinline__ T of(T a, T b) {
    return a > b || b != b ? a : b;
  }
};

template <class Op, class T> __device__ __forceinline__ T over_warp(T v) {
#pragma unroll
  for (int mask = 16; mask; mask >>= 1) v = Op::of(v, __shfl_xor_sync(0xffffffffu, v, mask));
  return v;
}

// `size` blocks work on one sample, 1 or a cluster's; all threads of all of them call `over`.
class Team {
 public:
  __device__ __forceinline__ Team(int rank, int size) : rank_(rank), size_(size), turn_(0) {}

  // One barrier a call (two in a cluster): the slots alternate, and whoever writes a slot again
  // has passed the barrier of the call between, which nobody reaches before having read it.
  template <class Op, class T, int N> __device__ __forceinline__ void over(T (&value)[N]) {
    __shared__ T slots[2][N][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    turn_ ^= 1;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      value[i] = over_warp<Op>(value[i]);
      if (lane == 0) slots[turn_][i][warp] = value[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; ++i)
      value[i] = over_warp<Op>(lane < warps ? slots[turn_][i][lane] : Op::template identity<T>());
    if (size_ > 1) over_cluster<Op>(value);
  }
  template <class Op, class T> __device__ __forceinline__ T over(T value) {
    T values[1] = {value};
    over<Op>(values);
    return values[0];
  }

  // Before a block ends: others may still be reading its slots.
  __device__ __forceinline__ void leave() const {
    if (size_ > 1) cluster_barrier();
  }

 private:
  static __device__ __forceinline__ void cluster_barrier() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    __cluster_barrier_arrive();
    __cluster_barrier_wait();
#endif
  }
  template <class Op, class T, int N> __device__ __forceinline__ void over_cluster(T (&value)[N]) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    __shared__ T totals[2][N];
    if (threadIdx.x == 0)
#pragma unroll
      for (int i = 0; i < N; ++i) totals[turn_][i] = value[i];
    cluster_barrier();
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      T other = Op::template identity<T>();
      if (lane < size_)
        other = *static_cast<const T*>(__cluster_map_shared_rank(&totals[turn_][i], lane));
      value[i] = over_warp<Op>(other);
    }
#endif
  }

  int rank_, size_, turn_;
};

}  // namespace device
}  // namespace fastard
