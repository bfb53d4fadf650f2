// The CUDA side of kernels.h that is no kernel: which step, the device, versions, errors.
#include "step.cuh"

namespace fastard {

int cuda_pgd_step(const StepArgs& a, void* stream) {
  if (a.batch == 0 || a.n == 0) return cudaSuccess;
  if (a.norm == kLinf) return device::linf_step_launch(a, stream);
  return a.norm == kL2 ? device::l2_step_launch(a, stream) : device::l1_step_launch(a, stream);
}

// The static runtime has its own idea of the device, which follows the context that torch's device
// guard made current. Only a device that differs is set: a green context of the right device stays.
int cuda_select(int device) {
  int current = 0;
  const cudaError_t code = cudaGetDevice(&current);
  if (code == cudaSuccess && current == device) return code;
  const cudaError_t set = cudaSetDevice(device);
  if (set != cudaSuccess) cudaGetLastError();
  return set;
}

int cuda_runtime_version() {
  int version = 0;
  return cudaRuntimeGetVersion(&version) == cudaSuccess ? version : 0;
}

// 0 without a driver.
int cuda_driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

const char* cuda_error(int code) { return cudaGetErrorString(cudaError_t(code)); }

}  // namespace fastard
