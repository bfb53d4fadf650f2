// Noise keyed by what it is for: a thread a block of four numbers. Bytes: 4 written a number.
// Expected: bound by the ten rounds' integer multiplications, 4 to 5 of them a number.
#include "../apgd.h"
#include "convert.cuh"
#include "launch.cuh"
// After what names the namespace of math.h.
#include "../philox.h"

namespace fastard {
namespace device {

constexpr int kNoiseThreads = 256;

template <bool NORMAL> __global__ void __launch_bounds__(kNoiseThreads, 1)
    noise_kernel(const __grid_constant__ NoiseArgs a, int64_t blocks) {
  const int64_t unit = int64_t(blockIdx.x) * kNoiseThreads + threadIdx.x;
  if (unit >= blocks * a.batch) return;
  const int64_t sample = int64_t(uint64_t(unit) / uint64_t(blocks));
  const int64_t block = unit - sample * blocks;
  uint32_t c0 = uint32_t(block), c1 = uint32_t(a.ids[sample]), c2 = a.stream, c3 = a.iteration;
  philox(c0, c1, c2, c3, uint32_t(a.seed), uint32_t(a.seed >> 32));
  float r0 = unit_interval(c0), r1 = unit_interval(c1), r2 = unit_interval(c2),
        r3 = unit_interval(c3);
  if (NORMAL) {
    box_muller(r0, r1);
    box_muller(r2, r3);
  }
  float* out = a.out + sample * a.numbers + 4 * block;
  const int64_t left = a.numbers - 4 * block;
  if (left >= 4 && reinterpret_cast<uintptr_t>(out) % 16 == 0) {
    *reinterpret_cast<float4*>(out) = make_float4(r0, r1, r2, r3);
    return;
  }
  out[0] = r0;
  if (left > 1) out[1] = r1;
  if (left > 2) out[2] = r2;
  if (left > 3) out[3] = r3;
}

}  // namespace device

int cuda_counter_noise(const NoiseArgs& a, void* stream) {
  using namespace device;
  const int64_t blocks = ceil_div(a.numbers, 4);
  return launch(a.normal ? noise_kernel<true> : noise_kernel<false>,
                ceil_div(blocks * a.batch, kNoiseThreads), kNoiseThreads, 0, 1, stream, a, blocks);
}

}  // namespace fastard
