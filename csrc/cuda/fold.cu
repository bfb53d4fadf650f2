// fold_bn_: every layer in one launch, a block a row of one layer's weight. Bytes a weight: 4 read,
// and 2 (4 in fp32) written; expected: some 0.05 ms for ResNet-18's 11 million.
#include "convert.cuh"
#include "launch.cuh"
#include "team.cuh"

#include "../activations.h"

namespace fastard {
namespace device {

constexpr int kFoldThreads = 256;
constexpr unsigned kFoldRows = 512;  // blocks a layer; more rows than that take turns

struct ReadValue {
  __device__ __forceinline__ double operator()(const FoldLayer& f, int which, int64_t at) const {
    return load_any<double>(f.data[which], int(f.types[which]), at);
  }
};

__device__ __forceinline__ void write_value(void* to, int64_t dtype, int64_t at, float value) {
  if (dtype == kF32)
    static_cast<float*>(to)[at] = value;
  else if (dtype == kBF16)
    static_cast<BF16*>(to)[at] = narrow<BF16>(value);
  else
    static_cast<F16*>(to)[at] = narrow<F16>(value);
}

__global__ void __launch_bounds__(kFoldThreads, 1)
    fold_kernel(void* arena, const FoldLayer* layers) {
  const FoldLayer& f = layers[blockIdx.y];
  const ReadValue read;
  Team team(0, 1);
  char* base = static_cast<char*>(arena);
  // A row's places fit an int: a 64-bit division is a call, with a stack.
  const int in = int(f.sizes[1]), width = int(f.sizes[3]), taps = int(f.sizes[2]) * width;
  const int64_t out = f.sizes[0], row = int64_t(in) * taps;
  for (int64_t o = blockIdx.x; o < out; o += gridDim.x) {
    const Scaling after = scaling(f, 2, f.eps_after, o, read);
    double held = 0;
#pragma unroll 1
    for (int e = int(threadIdx.x); f.data[0] && e < int(row); e += int(blockDim.x)) {
      // In the order of the copy: neighbours write neighbours.
      const int i = f.channels_last ? e % in : e / taps, k = f.channels_last ? e / in : e % taps;
      const double w = read(f, 0,
                            o * f.strides[0] + i * f.strides[1] + k / width * f.strides[2] +
                                k % width * f.strides[3]);
      Scaling before = {1.0, 0.0};
      if (f.data[8]) before = scaling(f, 6, f.eps_before, i, read);
      held += w * before.shift;
      const float value = float(w * before.scale * after.scale);
      if (f.weight_at >= 0) write_value(base + f.weight_at, f.dtype, o * row + e, value);
    }
    held = team.over<Add>(held);
    if (threadIdx.x) continue;
    if (f.data[1]) held += read(f, 1, o);
    reinterpret_cast<float*>(base + f.bias_at)[o] = float(after.shift + held * after.scale);
    if (f.scale_at >= 0) reinterpret_cast<float*>(base + f.scale_at)[o] = float(after.scale);
  }
}

}  // namespace device

int cuda_fold(const FoldArgs& a, void* stream) {
  if (!a.count) return cudaSuccess;
  if (a.count > 65535) return cudaErrorInvalidConfiguration;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(device::kFoldRows, unsigned(a.count));
  config.blockDim = dim3(device::kFoldThreads);
  config.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t code = cudaLaunchKernelEx(&config, device::fold_kernel, a.arena, a.layers);
  const cudaError_t last = cudaGetLastError();
  return code != cudaSuccess ? code : last;
}

}  // namespace fastard
