// What each ISA's object offers the engine: loops over a range of work units.
#pragma once
#include "../layers.h"

namespace fastard {

struct LayerTable {
  // Units are elements, output channels, chunks of channels of an image,
  // words of 16 elements.
  int (*epilogue)(const EpilogueArgs& a, int64_t begin, int64_t end);
  int (*fold)(const FoldLayer& layer, void* arena, int64_t begin, int64_t end);
  int64_t (*depthwise_units)(const DepthwiseArgs& a);
  int (*depthwise)(const DepthwiseArgs& a, int64_t begin, int64_t end);
  int (*mask_bits)(const BitsArgs& a, int64_t begin, int64_t end);
};

}  // namespace fastard

extern "C" {
extern const fastard::LayerTable fastard_layers_base;
extern const fastard::LayerTable fastard_layers_avx2;
extern const fastard::LayerTable fastard_layers_avx512;
}
