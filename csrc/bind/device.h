// The two places where kernels run, each with the errors it can meet.
#pragma once
#include <new>

#include "../fab.h"
#include "../apgd.h"
#include "../layers.h"
#include "../square.h"
#include "arguments.h"

namespace fastard {

struct Cpu {
  explicit Cpu(const Tensor&) {}
  static void check(int status) {
    require(status != kBadLabel, "every label must lie in [0, number of classes).");
    if (status == kNoMemory) throw std::bad_alloc();
  }
  void step(const StepArgs& a) { check(cpu_pgd_step(a)); }
  void start(const StartArgs& a) { check(cpu_random_start(a)); }
  void rows(const RowArgs& a) { check(cpu_logit_rows(a)); }
  void summed(const RowArgs& a, const SumArgs& s) { check(cpu_distill_kl(a, s)); }
  void fold(const FoldArgs& a) { check(cpu_fold(a)); }
  void epilogue(const EpilogueArgs& a) { check(cpu_epilogue(a)); }
  void square(const SquareArgs& a) { check(cpu_square_step(a)); }
  void fab(const FabArgs& a) { check(cpu_fab_step(a)); }
  void apgd_step(const ApgdStepArgs& a) { check(cpu_apgd_step(a)); }
  void apgd_keep(const ApgdKeepArgs& a) { check(cpu_apgd_keep(a)); }
  void noise(const NoiseArgs& a) { check(cpu_counter_noise(a)); }
};

#ifdef FASTARD_WITH_CUDA
struct DeviceGuard {
  explicit DeviceGuard(int32_t device) {
    ok(aoti_torch_create_device_guard(device, &handle), "select the device");
  }
  ~DeviceGuard() { aoti_torch_delete_device_guard(handle); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuardHandle handle = nullptr;
};

// torch's current stream on the tensor's device, which is current while this lives.
class Cuda {
 public:
  explicit Cuda(const Tensor& tensor) : guard_(tensor.device_index()) {
    require(aoti_torch_get_current_cuda_stream != nullptr, "this torch was built without CUDA.");
    ok(aoti_torch_get_current_cuda_stream(tensor.device_index(), &stream_),
       "give its current stream");
    check(cuda_select(tensor.device_index()));
  }
  static void check(int code) {
    require(!code, std::string("a CUDA launch failed: ") + cuda_error(code) + ".");
  }
  void step(const StepArgs& a) {
    countable(a.norm == kL1 ? a.n : 0, "an L1 sample's elements");
    check(cuda_pgd_step(a, stream_));
  }
  void start(const StartArgs& a) {
    countable(a.norm == kL1 && a.kind == kUniform ? a.n : 0, "an L1 sample's elements");
    check(cuda_random_start(a, stream_));
  }
  void rows(const RowArgs& a) {
    countable(a.classes, "classes");
    check(cuda_logit_rows(a, stream_));
  }
  void summed(const RowArgs& a, const SumArgs& s) {
    require(s.ticket, "a loss that is summed on CUDA needs a ticket.");
    countable(a.classes, "classes");
    check(cuda_distill_kl(a, s, stream_));
  }
  void fold(const FoldArgs& a) { check(cuda_fold(a, stream_)); }
  void epilogue(const EpilogueArgs& a) { check(cuda_epilogue(a, stream_)); }
  void square(const SquareArgs& a) {
    countable(a.channels * a.height * a.width, "a sample's elements");
    countable(a.classes, "classes");
    check(cuda_square_step(a, stream_));
  }
  void fab(const FabArgs& a) {
    countable(a.n, "a sample's elements");
    check(cuda_fab_step(a, stream_));
  }
  void apgd_step(const ApgdStepArgs& a) { check(cuda_apgd_step(a, stream_)); }
  void apgd_keep(const ApgdKeepArgs& a) { check(cuda_apgd_keep(a, stream_)); }
  void noise(const NoiseArgs& a) { check(cuda_counter_noise(a, stream_)); }

 private:
  static void countable(int64_t n, const char* what) {
    require(n <= kMostPlaces, std::string(what) + " must be at most 2^30 on CUDA, but are " +
                                  std::to_string(n) + ".");
  }
  DeviceGuard guard_;
  void* stream_ = nullptr;
};
#endif

}  // namespace fastard
