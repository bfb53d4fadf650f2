// What the images' kernels share: per-sample values, rounding on the way out, the choice of a
// kernel.
#pragma once
#include "convert.cuh"
#include "launch.cuh"

namespace fastard {
namespace device {

template <class A> __device__ __forceinline__ A per_sample(const PerSample& v, int64_t sample) {
  return v.data ? static_cast<const A*>(v.data)[v.stride * sample] : A(v.value);
}

// Stores V values from `index` on, half precisions rounded towards x; leaves what was stored.
template <class X, int V, class A>
__device__ __forceinline__ void put_towards(void* out, int64_t index, A (&value)[V],
                                            const Group<A, X, V>& x) {
  Pack<X, V> pack;
#pragma unroll
  for (int j = 0; j < V; ++j) {
    pack.v[j] = narrow_towards<X>(value[j], x[j]);
    value[j] = A(widen(pack.v[j]));
  }
  put(out, index, pack);
}

// A kernel's types and how many elements it moves at once.
template <class T, class U, int N> struct Shape {
  using X = T;
  using G = U;
  using A = Accumulator<T>;
  static constexpr int V = N;
};

// Whether `run` elements of x_type from each sample's (or the batch's) start make whole 16-byte
// groups; `places` are the tensors' addresses, or-ed.
inline bool groupable(int x_type, int64_t run, uintptr_t places) {
  const int64_t v = x_type == kF32 ? 4 : (x_type == kF64 ? 2 : 8);
  return run % v == 0 && places % 16 == 0;
}

// f(Shape) for the kernel that fits images of type x and a gradient or noise of type g: the common
// pairs have one that moves 16 bytes.
template <class F> int with_shape(int x, int g, bool grouped, F f) {
  if (grouped && x == kF32 && g == kF32) return f(Shape<float, float, 4>());
  if (grouped && x == kF32 && g == kBF16) return f(Shape<float, BF16, 4>());
  if (grouped && x == kF32 && g == kF16) return f(Shape<float, F16, 4>());
  if (grouped && x == kBF16 && g == kBF16) return f(Shape<BF16, BF16, 8>());
  if (grouped && x == kBF16 && g == kF32) return f(Shape<BF16, float, 8>());
  if (grouped && x == kF16 && g == kF16) return f(Shape<F16, F16, 8>());
  if (grouped && x == kF16 && g == kF32) return f(Shape<F16, float, 8>());
  if (grouped && x == kF64 && g == kF64) return f(Shape<double, double, 2>());
  if (x == kF32) return f(Shape<float, Any, 1>());
  if (x == kBF16) return f(Shape<BF16, Any, 1>());
  if (x == kF16) return f(Shape<F16, Any, 1>());
  return f(Shape<double, Any, 1>());
}

// A sample reduced before it is written: groups a thread holds of each input where a block's
// registers take the sample (12,288 elements, 6,144 in fp64). Few threads of many registers, so
// that nothing spills.
template <class S> constexpr int kHeldGroups = S::V == 8 ? 3 : 6;
constexpr int kResidentThreads = 512;
constexpr int kStreamedThreads = 1024;

// A block a sample where K's resident kernel holds it, else streamed by one block or a cluster. The
// resident one is made for groups alone.
template <class S, class K, class Args> int launch_samples(const Args& a, void* stream) {
  const int64_t groups = ceil_div(a.n, S::V), threads = ceil_div(groups, kHeldGroups<S>);
  if constexpr (S::V > 1) {
    if (threads <= kResidentThreads)
      return launch(K::template resident<S>(), a.batch, whole_warps(threads), 0, 1, stream, a);
  }
  constexpr auto streamed = K::template streamed<S>();
  int64_t size = 1;
  if (a.n > 4 * kStreamedThreads * S::V) {
    const int code = cluster_size<streamed>(&size);
    if (code) return code;
  }
  const int64_t most = groups < kStreamedThreads ? groups : kStreamedThreads;
  return launch(streamed, a.batch * size, whole_warps(most), 0, int(size), stream, a, int(size));
}

}  // namespace device
}  // namespace fastard
