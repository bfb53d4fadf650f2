// What each ISA's object offers the engine: loops over a range of work units.
#pragma once
#include "../layers.h"

namespace fastard {

// Units are chunks of channels of an image, words of 16 elements.
struct GroupedTable {
  int64_t (*depthwise_units)(const DepthwiseArgs& a);
  int (*depthwise)(const DepthwiseArgs& a, int64_t begin, int64_t end);
  int (*mask_bits)(const BitsArgs& a, int64_t begin, int64_t end);
};

// Units are elements, output channels.
struct LayerTable {
  int (*epilogue)(const EpilogueArgs& a, int64_t begin, int64_t end);
  int (*fold)(const FoldLayer& layer, void* arena, int64_t begin, int64_t end);
  const GroupedTable* grouped;
};

}  // namespace fastard

extern "C" {
extern const fastard::GroupedTable fastard_grouped_base;
extern const fastard::GroupedTable fastard_grouped_avx2;
extern const fastard::GroupedTable fastard_grouped_avx512;
extern const fastard::LayerTable fastard_layers_base;
extern const fastard::LayerTable fastard_layers_avx2;
extern const fastard::LayerTable fastard_layers_avx512;
}
