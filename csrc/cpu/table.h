// What each ISA's object offers: loops over a range of work units, threads are the caller's matter.
#pragma once
#include "../fab.h"
#include "../apgd.h"
#include "../kernels.h"
#include "../square.h"

namespace fastard {

struct CpuTable {
  const char* name;
  // Units are blocks of the step (Linf) or samples (L2, L1).
  int64_t (*step_units)(const StepArgs& a);
  int (*pgd_step)(const StepArgs& a, int64_t begin, int64_t end);
  int (*random_start)(const StartArgs& a, int64_t begin, int64_t end);
  int (*logit_rows)(const RowArgs& a, int64_t begin, int64_t end);
  int (*square_step)(const SquareArgs& a, int64_t begin, int64_t end);
  int (*fab_step)(const FabArgs& a, int64_t begin, int64_t end);
  int (*apgd_step)(const ApgdStepArgs& a, int64_t begin, int64_t end);
  int (*apgd_keep)(const ApgdKeepArgs& a, int64_t begin, int64_t end);
  int (*counter_noise)(const NoiseArgs& a, int64_t begin, int64_t end);
};

}  // namespace fastard

extern "C" {
extern const fastard::CpuTable fastard_cpu_base;
extern const fastard::CpuTable fastard_cpu_avx2;
extern const fastard::CpuTable fastard_cpu_avx512;
int fastard_rows_base(const fastard::RowArgs& a, int64_t begin, int64_t end);
int fastard_rows_avx2(const fastard::RowArgs& a, int64_t begin, int64_t end);
int fastard_rows_avx512(const fastard::RowArgs& a, int64_t begin, int64_t end);
}
