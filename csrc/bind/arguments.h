// Arguments as torch's dispatcher hands them to a boxed kernel, owned and checked.
#pragma once
#include <string.h>

#include <stdexcept>
#include <string>

#include "../kernels.h"
#include "torch_cshim.h"

namespace fastard {

inline void ok(AOTITorchError code, const char* what) {
  if (code != 0) throw std::runtime_error(std::string("fastard: torch refused to ") + what + ".");
}
inline void require(bool condition, const std::string& sentence) {
  if (!condition) throw std::runtime_error("fastard: " + sentence);
}

template <class T> T decode(StableIValue value) {
  T result;
  memcpy(&result, &value, sizeof(T));
  return result;
}

// Owns one reference to a tensor, or none where an optional argument was absent.
class Tensor {
 public:
  Tensor() : handle_(nullptr) {}
  explicit Tensor(AtenTensorHandle handle) : handle_(handle) {}
  Tensor(Tensor&& other) noexcept : handle_(other.handle_) { other.handle_ = nullptr; }
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;
  ~Tensor() {
    if (handle_) aoti_torch_delete_tensor_object(handle_);
  }

  static Tensor required(StableIValue value) { return Tensor(decode<AtenTensorHandle>(value)); }
  // The dispatcher boxes an optional as a pointer to a heap cell, which the callee frees.
  static Tensor optional(StableIValue value) {
    StableIValue* cell = decode<StableIValue*>(value);
    if (!cell) return Tensor();
    Tensor tensor(decode<AtenTensorHandle>(*cell));
    delete cell;
    return tensor;
  }

  explicit operator bool() const { return handle_ != nullptr; }
  int64_t numel() const { return read<int64_t>(aoti_torch_get_numel, "count elements"); }
  int64_t dim() const { return read<int64_t>(aoti_torch_get_dim, "count dimensions"); }
  const int64_t* sizes() const { return read<int64_t*>(aoti_torch_get_sizes, "give sizes"); }
  const int64_t* strides() const { return read<int64_t*>(aoti_torch_get_strides, "give strides"); }
  int32_t dtype() const { return read<int32_t>(aoti_torch_get_dtype, "give a dtype"); }
  int32_t device_type() const { return read<int32_t>(aoti_torch_get_device_type, "give a device"); }
  int32_t device_index() const {
    return read<int32_t>(aoti_torch_get_device_index, "give a device index");
  }
  const void* data() const {
    return handle_ ? read<const void*>(torch_get_const_data_ptr, "give data") : nullptr;
  }
  void* mutable_data() const {
    return handle_ ? read<void*>(torch_get_mutable_data_ptr, "give data to write") : nullptr;
  }

  // DType of a floating tensor.
  int type(const char* name) const {
    const int32_t code = dtype();
    if (code == aoti_torch_dtype_float32()) return kF32;
    if (code == aoti_torch_dtype_float64()) return kF64;
    if (code == aoti_torch_dtype_float16()) return kF16;
    if (code == aoti_torch_dtype_bfloat16()) return kBF16;
    throw std::runtime_error(std::string("fastard: ") + name +
                             " must be float32, float64, float16 or bfloat16.");
  }
  bool same_shape(const Tensor& other) const {
    return dim() == other.dim() && !memcmp(sizes(), other.sizes(), size_t(dim()) * 8);
  }
  // Equal order in memory: strides agree wherever a dimension has more than one element.
  bool same_layout(const Tensor& other) const {
    for (int64_t d = 0; d < dim(); ++d)
      if (sizes()[d] > 1 && strides()[d] != other.strides()[d]) return false;
    return true;
  }
  bool contiguous() const {
    int64_t expected = 1;
    for (int64_t d = dim() - 1; d >= 0; --d) {
      if (sizes()[d] > 1 && strides()[d] != expected) return false;
      expected *= sizes()[d];
    }
    return true;
  }
  // No gaps, no overlaps, samples outermost.
  bool dense_samples() const {
    int64_t expected = 1, left = 0;
    for (int64_t d = 0; d < dim(); ++d) left += sizes()[d] > 1;
    for (bool found = true; left && found; --left) {
      found = false;
      for (int64_t d = 0; d < dim() && !found; ++d)
        if (sizes()[d] > 1 && strides()[d] == expected && (d > 0 || left == 1)) {
          expected *= sizes()[d];
          found = true;
        }
      if (!found) return false;
    }
    return true;
  }

 private:
  template <class T, class F> T read(F getter, const char* what) const {
    T value;
    ok(getter(handle_, &value), what);
    return value;
  }
  AtenTensorHandle handle_;
};

}  // namespace fastard
