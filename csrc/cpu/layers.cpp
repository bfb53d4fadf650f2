// The engine's kernels: which instruction set, how finely the work is split.
#include "layers.h"

#include <string.h>

#include "parallel.h"

namespace fastard {
namespace {

constexpr int64_t kGrain = 32768;

const LayerTable& chosen() {
#ifdef FASTARD_X86
  const char* isa = cpu_isa();
  if (!strcmp(isa, "avx512")) return fastard_layers_avx512;
  if (!strcmp(isa, "avx2")) return fastard_layers_avx2;
#endif
  return fastard_layers_base;
}

}  // namespace

int cpu_fold(const FoldArgs& a) {
  const LayerTable& table = chosen();
  for (int64_t l = 0; l < a.count; ++l) {
    const FoldLayer& f = a.layers[l];
    const int64_t taps = f.data[0] ? f.sizes[2] * f.sizes[3] : 1;
    const int64_t elements = f.data[0] ? f.sizes[0] * f.sizes[1] * taps : f.sizes[0];
    parallel(f.sizes[0], elements, kGrain,
             [&](int64_t b, int64_t e) { return table.fold(f, a.arena, b, e); });
  }
  return kOk;
}

int cpu_epilogue(const EpilogueArgs& a) {
  if (!a.count) return kOk;
  // In whole rows of channels.
  const int64_t unit = a.plane == 1 ? a.channels : 1024, units = (a.count + unit - 1) / unit;
  return parallel(units, a.count, kGrain, [&](int64_t b, int64_t e) {
    const int64_t end = e * unit < a.count ? e * unit : a.count;
    return chosen().epilogue(a, b * unit, end);
  });
}

int cpu_mask_bits(const BitsArgs& a) {
  return parallel((a.count + 15) / 16, a.count, kGrain,
                  [&](int64_t b, int64_t e) { return chosen().grouped->mask_bits(a, b, e); });
}

int cpu_depthwise(const DepthwiseArgs& a) {
  const int64_t pixels = a.backward ? a.height * a.width : a.out_height * a.out_width;
  return parallel(chosen().grouped->depthwise_units(a), a.batch * pixels * a.channels * 4, kGrain,
                  [&](int64_t b, int64_t e) { return chosen().grouped->depthwise(a, b, e); });
}

}  // namespace fastard
