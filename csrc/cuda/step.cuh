// What the three steps share: the second output, the way out.
#pragma once
#include "images.cuh"

namespace fastard {
namespace device {

int linf_step_launch(const StepArgs& a, void* stream);
int l2_step_launch(const StepArgs& a, void* stream);
int l1_step_launch(const StepArgs& a, void* stream);

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
  put_towards<X>(a.x_adv, index, value, x);
  write_feed<V>(a, index, value);
}

// Whether `run` elements from each sample's (or the batch's) start move in 16-byte groups.
inline bool groupable(const StepArgs& a, int64_t run) {
  return groupable(a.x_type, run,
                   uintptr_t(a.x_adv) | uintptr_t(a.x) | uintptr_t(a.grad) | uintptr_t(a.feed));
}

}  // namespace device
}  // namespace fastard
