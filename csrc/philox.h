// Philox4x32-10 (Salmon et al. 2011) and Box and Muller's transform, for CPU and CUDA.
#pragma once
#include "math.h"

namespace fastard {
namespace FA_ISA {

FA_FN void philox(uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3, uint32_t k0,
                  uint32_t k1) {
#ifdef __CUDACC__
#pragma unroll
#else
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(c0) * 0xD2511F53u, b = uint64_t(c2) * 0xCD9E8D57u;
    c0 = uint32_t(b >> 32) ^ c1 ^ k0;
    c1 = uint32_t(b);
    c2 = uint32_t(a >> 32) ^ c3 ^ k1;
    c3 = uint32_t(a);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

// The highest 24 bits as a number in [0, 1); through a signed int, which vectors convert.
FA_FN float unit_interval(uint32_t bits) { return float(int32_t(bits >> 8)) * 0x1p-24f; }

// Two uniform numbers become two normal ones. The angle is reduced in turns, which is exact.
FA_FN void box_muller(float& u, float& v) {
  const float radius = root(-2.0f * logarithm(u + 0x1p-24f));
  const float quarters = v * 4.0f;
  const int32_t nearest = int32_t(quarters + 0.5f);
  const float t = (quarters - float(nearest)) * 1.57079632679489662f, z = t * t;
  const float sine =
      ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * t + t;
  const float cosine =
      ((2.443315711809948e-5f * z - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z * z -
      0.5f * z + 1.0f;
  const bool odd = nearest & 1;
  const float x = odd ? sine : cosine, y = odd ? cosine : sine;
  u = radius * (((nearest + 1) & 2) ? -x : x);
  v = radius * ((nearest & 2) ? -y : y);
}

}  // namespace FA_ISA
}  // namespace fastard
