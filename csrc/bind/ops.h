#pragma once
#include <string>

#include "arguments.h"

namespace fastard {
// Defines torch.ops.fastard.* and registers its CPU and CUDA kernels; throws where torch refuses.
void register_ops();
void define_layer_ops(TorchLibraryHandle lib);
void implement_layer_ops_cpu(TorchLibraryHandle lib);
void implement_layer_ops_cuda(TorchLibraryHandle lib);
void define_square_ops(TorchLibraryHandle lib);
void implement_square_ops_cpu(TorchLibraryHandle lib);
void implement_square_ops_cuda(TorchLibraryHandle lib);
void define_fab_ops(TorchLibraryHandle lib);
void implement_fab_ops_cpu(TorchLibraryHandle lib);
void implement_fab_ops_cuda(TorchLibraryHandle lib);
void define_apgd_ops(TorchLibraryHandle lib);
void implement_apgd_ops_cpu(TorchLibraryHandle lib);
void implement_apgd_ops_cuda(TorchLibraryHandle lib);

// The encoding of arguments that the kernels assume: torch 2.11's.
constexpr uint64_t kAbi = (2ull << 56) | (11ull << 48);

inline void define(TorchLibraryHandle lib, const std::string& schema) {
  ok(aoti_torch_library_def(lib, schema.c_str()), "define an operator");
}
inline void implement(TorchLibraryHandle lib, const char* name,
                      void (*kernel)(StableIValue*, uint64_t, uint64_t)) {
  ok(torch_library_impl(lib, name, kernel, kAbi), "register a kernel");
}
}  // namespace fastard
