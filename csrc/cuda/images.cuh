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

}  // namespace device
}  // namespace fastard
