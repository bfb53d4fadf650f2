// APGD's bookkeeping: a block a sample, which reads the sample's marks, copies what changed and
// writes the marks back. Bytes: 16 an element of a sample whose loss rose (x_adv and grad, read and
// written), 8 more of one that fooled the model.
// Expected: bound by the launch at CIFAR's sizes.
#include "images.cuh"
// After what names the namespace of math.h.
#include "../apgd_marks.h"

namespace fastard {
namespace device {

constexpr int kKeepThreads = 512;

template <class T, int V>
__device__ __forceinline__ void copy_row(void* to, const void* from, int64_t base, int64_t n) {
#pragma unroll 1
  for (int64_t i = threadIdx.x * V; i < n; i += int64_t(blockDim.x) * V)
    put(to, base + i, fetch<T, V>(from, base + i));
}

template <class T, int V> __global__ void __launch_bounds__(kKeepThreads, 1)
    apgd_keep_kernel(const __grid_constant__ ApgdKeepArgs a) {
  const int64_t sample = blockIdx.x, base = sample * a.n;
  T* marks = static_cast<T*>(a.marks) + sample;
  const T loss = static_cast<const T*>(a.loss)[sample];
  const bool correct = a.correct[sample];
  SampleMarks<T> m = read_marks(marks, a.batch);
  const bool higher = loss > m.v[kBestLoss];
  if (higher) {
    m.v[kBestLoss] = loss;
    m.v[kMovedBest] = m.v[kMovedNow];
    copy_row<T, V>(a.best, a.x_adv, base, a.n);
    copy_row<T, V>(a.best_grad, a.grad, base, a.n);
  }
  if (!correct) copy_row<T, V>(a.fooled, a.x_adv, base, a.n);
  if (!a.sparse) {
    halve(m, loss, a.window, T(a.rho * double(a.window)));
  } else if (a.window) {
    thin(m, T(a.n));
  }
  // All have read the marks before one writes them.
  __syncthreads();
  if (threadIdx.x == 0) {
    write_marks(m, marks, a.batch);
    if (!correct) a.robust[sample] = false;
  }
}

template <class T, int V> int keep_launch(const ApgdKeepArgs& a, void* stream) {
  const int64_t groups = ceil_div(a.n, V);
  const int threads = whole_warps(groups < kKeepThreads ? groups : kKeepThreads);
  return launch(apgd_keep_kernel<T, V>, a.batch, threads, 0, 1, stream, a);
}

}  // namespace device

int cuda_apgd_keep(const ApgdKeepArgs& a, void* stream) {
  using namespace device;
  const uintptr_t places = uintptr_t(a.x_adv) | uintptr_t(a.grad) | uintptr_t(a.x) |
                           uintptr_t(a.best) | uintptr_t(a.best_grad) | uintptr_t(a.fooled);
  if (a.type == kF64) return keep_launch<double, 1>(a, stream);
  return groupable(a.type, a.n, places) ? keep_launch<float, 4>(a, stream)
                                        : keep_launch<float, 1>(a, stream);
}

}  // namespace fastard
