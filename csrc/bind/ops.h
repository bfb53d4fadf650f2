#pragma once

namespace fastard {
// Defines torch.ops.fastard.* and registers its CPU and CUDA kernels; throws where torch refuses.
void register_ops();
}  // namespace fastard
