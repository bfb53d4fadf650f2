// What the starts share: the way out.
#pragma once
#include "images.cuh"

namespace fastard {
namespace device {

int l1_start_launch(const StartArgs& a, void* stream);

// Stores V starts from `index` on, inside the box if the start is clipped.
template <class X, int V, class A>
__device__ __forceinline__ void write_start(const StartArgs& a, int64_t index, A (&value)[V],
                                            const Group<A, X, V>& x) {
  if (a.clip) {
    const A lo = A(a.clip_min), hi = A(a.clip_max);
#pragma unroll
    for (int j = 0; j < V; ++j) value[j] = clamp(value[j], lo, hi);
  }
  put_towards<X>(a.x_adv, index, value, x);
}

}  // namespace device
}  // namespace fastard
