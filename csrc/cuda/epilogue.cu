// The engine's epilogues: one elementwise pass. Bytes an element, bf16: 2 read and 2 written, 2
// more for each of saved, other, extra and pre (../cpu/epilogue.inc says what runs when); expected:
// the copy bandwidth from 64 MB on, below that the L2 cache's, since a convolution has just written
// what is read here.
#include "convert.cuh"
#include "launch.cuh"

#include "../activations.h"

namespace fastard {
namespace device {

constexpr int kEpilogueThreads = 256;

__device__ __forceinline__ float activated_by(int act, float v) {
  switch (act) {
    case kRelu: return activated<kRelu>(v);
    case kRelu6: return activated<kRelu6>(v);
    case kSilu: return activated<kSilu>(v);
    case kGelu: return activated<kGelu>(v);
    case kGeluTanh: return activated<kGeluTanh>(v);
    case kHardswish: return activated<kHardswish>(v);
    default: return v;
  }
}
__device__ __forceinline__ float pulled_back_by(int act, float grad, float v) {
  switch (act) {
    case kRelu: return pulled_back<kRelu>(grad, v);
    case kRelu6: return pulled_back<kRelu6>(grad, v);
    case kSilu: return pulled_back<kSilu>(grad, v);
    case kGelu: return pulled_back<kGelu>(grad, v);
    case kGeluTanh: return pulled_back<kGeluTanh>(grad, v);
    case kHardswish: return pulled_back<kHardswish>(grad, v);
    default: return grad;
  }
}

// V elements of 16 bytes, or one: a group lies in one channel or in consecutive ones. X is T, or
// float where the gradient arrives so.
template <class X, class T, int V> __global__ void __launch_bounds__(kEpilogueThreads, 1)
    epilogue_kernel(const __grid_constant__ EpilogueArgs a, int64_t groups) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t g = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; g < groups; g += step) {
    const int64_t at = g * V;
    const Pack<X, V> x = fetch<X, V>(a.x, at);
    Pack<T, V> other, saved, extra, out, pre;
    if (a.other) other = fetch<T, V>(a.other, at);
    if (a.saved) saved = fetch<T, V>(a.saved, at);
    if (a.extra) extra = fetch<T, V>(a.extra, at);
    const int64_t first = a.scale || a.shift ? (at / a.plane) % a.channels : 0;
    const int next = a.plane == 1;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const float scale = a.scale ? a.scale[first + j * next] : 1.0f;
      const float shift = a.shift ? a.shift[first + j * next] : -0.0f;
      float v = widen(x.v[j]);
      if (a.backward) {
        if (a.extra) v += widen(extra.v[j]);
        if (a.saved) {
          const float from = widen(saved.v[j]);
          v = pulled_back_by(a.act, v, a.shift ? from * scale + shift : from);
        }
        v *= scale;
      } else {
        v = v * scale + shift;
      }
      if (a.other) v += widen(other.v[j]);
      pre.v[j] = narrow<T>(v);
      out.v[j] = narrow<T>(a.backward ? v : activated_by(a.act, v));
    }
    put<T, V>(a.out, at, out);
    if (a.pre) put<T, V>(a.pre, at, pre);
  }
}

uintptr_t misaligned(const EpilogueArgs& a) {
  uintptr_t bits = 0;
  for (const void* p : {a.x, a.other, a.saved, a.extra, (const void*)a.out, (const void*)a.pre})
    bits |= reinterpret_cast<uintptr_t>(p);
  return bits % 16;
}

template <class X, class T> int epilogue_launch(const EpilogueArgs& a, void* stream) {
  constexpr int V = 16 / sizeof(T);
  const bool channelled = a.scale || a.shift;
  const int64_t unit = !channelled ? a.count : (a.plane == 1 ? a.channels : a.plane);
  const bool wide = a.count % V == 0 && unit % V == 0 && !misaligned(a);
  const int64_t groups = wide ? a.count / V : a.count;
  int64_t blocks = ceil_div(groups, kEpilogueThreads);
  constexpr int64_t kMostBlocks = int64_t(1) << 20;
  blocks = blocks < kMostBlocks ? blocks : kMostBlocks;
  return launch(wide ? epilogue_kernel<X, T, V> : epilogue_kernel<X, T, 1>, blocks,
                kEpilogueThreads, 0, 1, stream, a, groups);
}

template <class T> int epilogue_of(const EpilogueArgs& a, void* stream) {
  return a.x_type == a.type ? epilogue_launch<T, T>(a, stream)
                            : epilogue_launch<float, T>(a, stream);
}

}  // namespace device

int cuda_epilogue(const EpilogueArgs& a, void* stream) {
  if (!a.count) return cudaSuccess;
  if (a.type == kF32) return device::epilogue_launch<float, float>(a, stream);
  if (a.type == kBF16) return device::epilogue_of<device::BF16>(a, stream);
  return device::epilogue_of<device::F16>(a, stream);
}

}  // namespace fastard
