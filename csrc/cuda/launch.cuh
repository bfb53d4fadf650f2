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

// While it lives, this thread may ask what a capture by another or itself would forbid: the first
// question about a kernel loads its module.
class Relaxed {
 public:
  Relaxed() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~Relaxed() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  Relaxed(const Relaxed&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// find(device, &value), asked once for each device: nothing but the launch is left to a capture.
class PerDevice {
 public:
  template <class F> int get(int64_t* value, F find) {
    int device = 0;
    cudaError_t code = cudaGetDevice(&device);
    const bool kept = !code && device < kDevices;
    *value = kept ? known_[device].load() : 0;
    if (*value > 0) return cudaSuccess;
    if (!code) {
      const Relaxed relaxed;
      code = find(device, value);
    }
    if (code) return cudaGetLastError(), code;
    if (kept) known_[device].store(*value);
    return cudaSuccess;
  }

 private:
  static constexpr int kDevices = 64;
  std::atomic<int64_t> known_[kDevices] = {};
};

// How many blocks may form a cluster. The code's own target decides, not the device's: PTX of an
// older one has no clusters in it.
template <auto KERNEL> int cluster_size(int64_t* size) {
  static PerDevice known;
  return known.get(size, [](int, int64_t* found) {
    cudaFuncAttributes attributes = {};
    const cudaError_t code = cudaFuncGetAttributes(&attributes, KERNEL);
    *found = attributes.ptxVersion >= 90 ? 8 : 1;
    return code;
  });
}

// Bytes of dynamic shared memory that KERNEL may use, all that the device has for a block.
template <auto KERNEL> int shared_memory(int64_t* bytes) {
  static PerDevice known;
  return known.get(bytes, [](int device, int64_t* found) {
    int most = 0;
    cudaFuncAttributes attributes = {};
    cudaError_t code = cudaFuncGetAttributes(&attributes, KERNEL);
    if (!code)
      code = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    *found = most - int64_t(attributes.sharedSizeBytes);
    if (code) return code;
    return cudaFuncSetAttribute(KERNEL, cudaFuncAttributeMaxDynamicSharedMemorySize, int(*found));
  });
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int whole_warps(int64_t threads) { return int(ceil_div(threads, 32) * 32); }

}  // namespace device
}  // namespace fastard
