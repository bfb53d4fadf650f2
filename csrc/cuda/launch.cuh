// One launch on the given stream; its error, if any, is the result.
#pragma once
#include <cuda_runtime.h>
#include <stdint.h>

#include <atomic>

namespace fastard {
namespace device {

// Consecutive `cluster` blocks form a cluster (compute capability 9.0 on).
template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared, int cluster,
           void* stream, const Arguments&... arguments) {
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(blocks));
  config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(stream);
  cudaLaunchAttribute attribute = {};
  if (cluster > 1) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = unsigned(cluster);
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    config.attrs = &attribute;
    config.numAttrs = 1;
  }
  const cudaError_t code = cudaLaunchKernelEx(&config, kernel, arguments...);
  const cudaError_t last = cudaGetLastError();
  return code != cudaSuccess ? code : last;
}

// What the device allows a kernel: blocks in a cluster, dynamic shared memory in bytes.
struct Limits {
  int cluster;
  int64_t shared;
};
// `KERNEL` may use all of `shared` from here on; the attribute is set once per device.
template <auto KERNEL> int limits(Limits* found) {
  int device = 0, most = 0;
  cudaFuncAttributes attributes;
  cudaError_t code = cudaGetDevice(&device);
  if (!code) code = cudaFuncGetAttributes(&attributes, KERNEL);
  if (!code) code = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (code) return cudaGetLastError(), code;
  found->shared = most - int64_t(attributes.sharedSizeBytes);
  // The code's own target, not the device's: PTX of an older one has no clusters in it.
  found->cluster = attributes.ptxVersion >= 90 ? 8 : 1;
  static std::atomic<uint64_t> done{0};
  const uint64_t bit = device < 64 ? uint64_t(1) << device : 0;
  if (bit & done.load()) return cudaSuccess;
  code = cudaFuncSetAttribute(KERNEL, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              int(found->shared));
  if (code) return cudaGetLastError(), code;
  done.fetch_or(bit);
  return cudaSuccess;
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int whole_warps(int64_t threads) { return int(ceil_div(threads, 32) * 32); }

}  // namespace device
}  // namespace fastard
