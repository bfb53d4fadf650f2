// What the three steps share: per-sample values, the second output, the choice of a kernel.
#pragma once
#include "convert.cuh"
#include "launch.cuh"

namespace fastard {
namespace device {

int linf_step_launch(const StepArgs& a, void* stream);
int l2_step_launch(const StepArgs& a, void* stream);
int l1_step_launch(const StepArgs& a, void* stream);

template <class A> __device__ __forceinline__ A per_sample(const PerSample& v, int64_t sample) {
  return v.data ? static_cast<const A*>(v.data)[v.stride * sample] : A(v.value);
}

// Writes the second output of V elements; `index` counts from the batch's first. A sample holds
// whole rounds of the channels, so the batch's index finds the channel as the sample's would.
template <int V, class A>
__device__ __forceinline__ void write_feed(const StepArgs& a, int64_t index, const A (&value)[V]) {
  if (!a.feed) return;
  A out[V];
#pragma unroll
  for (int j = 0; j < V; ++j) out[j] = value[j];
  if (a.mean) {
    const uint64_t row = uint64_t(index) / uint64_t(a.plane);
    int64_t column = index - int64_t(row) * a.plane, c = int64_t(row % uint64_t(a.channels));
#pragma unroll
    for (int j = 0; j < V; ++j) {
      out[j] = normalised(value[j], A(a.mean[c]), A(a.std[c]));
      if (++column == a.plane) {
        column = 0;
        c = c + 1 == a.channels ? 0 : c + 1;
      }
    }
  }
  with_type(a.feed_type, [&](auto tag) {
    using T = decltype(tag);
    Pack<T, V> pack;
#pragma unroll
    for (int j = 0; j < V; ++j) pack.v[j] = narrow<T>(out[j]);
    put(a.feed, index, pack);
  });
}

// Stores V new values of x_adv and the second output that the model sees: what was stored.
template <class X, int V, class A>
__device__ __forceinline__ void write_step(const StepArgs& a, int64_t index, A (&value)[V],
                                           const Group<A, X, V>& x) {
  Pack<X, V> pack;
#pragma unroll
  for (int j = 0; j < V; ++j) {
    pack.v[j] = narrow_towards<X>(value[j], x[j]);
    value[j] = A(widen(pack.v[j]));
  }
  put(a.x_adv, index, pack);
  write_feed<V>(a, index, value);
}

// A kernel's types and how many elements it moves at once.
template <class T, class U, int N> struct Shape {
  using X = T;
  using G = U;
  using A = Accumulator<T>;
  static constexpr int V = N;
};

// Whether `run` elements from each sample's (or the batch's) start make whole 16-byte groups.
inline bool groupable(const StepArgs& a, int64_t run) {
  const int64_t v = a.x_type == kF32 ? 4 : (a.x_type == kF64 ? 2 : 8);
  const uintptr_t places =
      uintptr_t(a.x_adv) | uintptr_t(a.x) | uintptr_t(a.grad) | uintptr_t(a.feed);
  return run % v == 0 && places % 16 == 0;
}

// f(Shape) for the kernel that fits: the common pairs of types have one that moves 16 bytes.
template <class F> int with_shape(const StepArgs& a, bool grouped, F f) {
  const int x = a.x_type, g = a.grad_type;
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
