// Splits work among OpenMP threads (torch's own libgomp pool, so that torch.set_num_threads holds).
#pragma once
#include <stdint.h>
#ifdef _OPENMP
#include <omp.h>
#endif

namespace fastard {

// Units are split into equal contiguous runs; results do not depend on how many threads there are.
template <class Work> static int parallel(int64_t units, int64_t elements, int64_t grain, Work work) {
  if (units <= 0 || elements <= 0) return 0;
#ifdef _OPENMP
  int64_t threads = omp_get_max_threads();
  if (threads > units) threads = units;
  if (threads > 1 && elements >= 2 * grain && !omp_in_parallel()) {
    int status = 0;
#pragma omp parallel num_threads(int(threads)) reduction(max : status)
    {
      const int64_t count = omp_get_num_threads(), id = omp_get_thread_num();
      const int64_t begin = units * id / count, end = units * (id + 1) / count;
      if (begin < end) status = work(begin, end);
    }
    return status;
  }
#endif
  (void)grain;
  return work(int64_t(0), units);
}

}  // namespace fastard
