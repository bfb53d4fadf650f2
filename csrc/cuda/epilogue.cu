// The engine's epilogues: one elementwise pass. Bytes an element, bf16: 2 read and 2 written, 2
// more for each of saved and other; expected: the copy bandwidth from 64 MB on, below that the L2
// cache's, since a convolution has just written what is read here.
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

// V elements of 16 bytes, or one: a group lies in one channel or in consecutive ones.
template <class T, int V> __global__ void __launch_bounds__(kEpilogueThreads, 1)
    epilogue_kernel(const __grid_constant__ EpilogueArgs a, int64_t groups) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t g = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; g < groups; g += step) {
    const int64_t at = g * V;
    Pack<T, V> x = fetch<T, V>(a.x, at), other, saved, out;
    if (a.other) other = fetch<T, V>(a.other, at);
    if (a.saved) saved = fetch<T, V>(a.saved, at);
    const int64_t first = a.scale || a.shift ? (at / a.plane) % a.channels : 0;
    const int next = a.plane == 1;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      float v = widen(x.v[j]);
      if (a.backward && a.saved) v = pulled_back_by(a.act, v, widen(saved.v[j]));
      if (a.scale) v *= a.scale[first + j * next];
      if (a.shift) v += a.shift[first + j * next];
      if (a.other) v += widen(other.v[j]);
      out.v[j] = narrow<T>(a.backward ? v : activated_by(a.act, v));
    }
    put<T, V>(a.out, at, out);
  }
}

template <class T> int epilogue_launch(const EpilogueArgs& a, void* stream) {
  constexpr int V = 16 / sizeof(T);
  const bool channelled = a.scale || a.shift;
  const int64_t unit = !channelled ? a.count : (a.plane == 1 ? a.channels : a.plane);
  uintptr_t bits = reinterpret_cast<uintptr_t>(a.x) | reinterpret_cast<uintptr_t>(a.out);
  bits |= reinterpret_cast<uintptr_t>(a.other) | reinterpret_cast<uintptr_t>(a.saved);
  const bool wide = a.count % V == 0 && unit % V == 0 && bits % 16 == 0;
  const int64_t groups = wide ? a.count / V : a.count;
  int64_t blocks = ceil_div(groups, kEpilogueThreads);
  constexpr int64_t kMostBlocks = int64_t(1) << 20;
  blocks = blocks < kMostBlocks ? blocks : kMostBlocks;
  return launch(wide ? epilogue_kernel<T, V> : epilogue_kernel<T, 1>, blocks, kEpilogueThreads, 0,
                1, stream, a, groups);
}

}  // namespace device

int cuda_epilogue(const EpilogueArgs& a, void* stream) {
  if (!a.count) return cudaSuccess;
  if (a.type == kF32) return device::epilogue_launch<float>(a, stream);
  if (a.type == kBF16) return device::epilogue_launch<device::BF16>(a, stream);
  return device::epilogue_launch<device::F16>(a, stream);
}

}  // namespace fastard
