// Chooses the instruction set once and how finely the ops' work is split.
#include <stdlib.h>
#include <string.h>

#include "parallel.h"
#include "table.h"

namespace fastard {
namespace {

// Below this many elements a thread costs more than it brings; torch's own grain.
constexpr int64_t kGrain = 32768;
// A class costs two exponentials, some sixteen times a step's element.
constexpr int64_t kRowGrain = 4096;
// FAB's searches go over a sample some twenty times.
constexpr int64_t kFabGrain = 2048;

const CpuTable* widest() {
  const CpuTable* table = &fastard_cpu_base;
#ifdef FASTARD_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd");
  const char* wanted = getenv("FASTARD_CPU_ISA");
  const bool any = !wanted || !*wanted;
  if (avx2 && (any || strcmp(wanted, "base"))) table = &fastard_cpu_avx2;
  if (avx512 && (any || !strcmp(wanted, "avx512"))) table = &fastard_cpu_avx512;
#endif
  return table;
}

const CpuTable& chosen() {
  static const CpuTable* table = widest();
  return *table;
}

bool out_of_range(const int64_t* labels, int64_t rows, int64_t classes) {
  if (!labels) return false;
  for (int64_t r = 0; r < rows; ++r)
    if (labels[r] < 0 || labels[r] >= classes) return true;
  return false;
}

}  // namespace

const char* cpu_isa() { return chosen().name; }

int cpu_pgd_step(const StepArgs& args) {
  StepArgs a = args;
  // One value for all and nothing per channel: the whole batch is one long sample.
  if (a.norm == kLinf && !a.mean && (!a.eps.data || !a.eps.stride) &&
      (!a.alpha.data || !a.alpha.stride)) {
    a.n *= a.batch;
    a.batch = a.n ? 1 : 0;
  }
  const CpuTable& table = chosen();
  const int64_t elements = a.batch * a.n;
  if (!elements) return kOk;
  return parallel(table.step_units(a), elements, kGrain,
                  [&](int64_t b, int64_t e) { return table.pgd_step(a, b, e); });
}

int cpu_random_start(const StartArgs& a) {
  return parallel(a.n ? a.batch : 0, a.batch * a.n, kGrain,
                  [&](int64_t b, int64_t e) { return chosen().random_start(a, b, e); });
}

int cpu_fab_step(const FabArgs& a) {
  return parallel(a.n ? a.batch : 0, a.batch * a.n, kFabGrain,
                  [&](int64_t b, int64_t e) { return chosen().fab_step(a, b, e); });
}

int cpu_apgd_step(const ApgdStepArgs& a) {
  return parallel(a.n ? a.batch : 0, a.batch * a.n, kGrain,
                  [&](int64_t b, int64_t e) { return chosen().apgd_step(a, b, e); });
}

int cpu_apgd_keep(const ApgdKeepArgs& a) {
  return parallel(a.n ? a.batch : 0, a.batch * a.n, kGrain,
                  [&](int64_t b, int64_t e) { return chosen().apgd_keep(a, b, e); });
}

// A number costs ten rounds of multiplications.
int cpu_counter_noise(const NoiseArgs& a) {
  return parallel(a.numbers ? a.batch : 0, a.batch * a.numbers, kRowGrain,
                  [&](int64_t b, int64_t e) { return chosen().counter_noise(a, b, e); });
}

int cpu_logit_rows(const RowArgs& a) {
  if (out_of_range(a.labels, a.rows, a.classes) || out_of_range(a.goals, a.rows, a.classes))
    return kBadLabel;
  return parallel(a.rows, a.rows * a.classes, kRowGrain,
                  [&](int64_t b, int64_t e) { return chosen().logit_rows(a, b, e); });
}

int cpu_square_step(const SquareArgs& a) {
  if (a.logits && out_of_range(a.labels, a.rows, a.classes)) return kBadLabel;
  const int64_t side = a.judged_side > a.proposed_side ? a.judged_side : a.proposed_side;
  const int64_t pixels = a.norm == kLinf ? side * side : a.height * a.width;
  return parallel(a.rows, a.rows * (a.channels * pixels + a.classes), kGrain,
                  [&](int64_t b, int64_t e) { return chosen().square_step(a, b, e); });
}

int cpu_distill_kl(const RowArgs& args, const SumArgs& s) {
  RowArgs a = args;
  a.loss = s.partials;
  if (const int status = cpu_logit_rows(a)) return status;
  const bool wide = a.logits_type == kF64;
  double total = 0;
  for (int64_t i = 0; i < a.rows; ++i)
    total += wide ? s.partials[i] : double(reinterpret_cast<const float*>(s.partials)[i]);
  if (wide)
    *static_cast<double*>(s.total) = total;
  else
    *static_cast<float*>(s.total) = float(total);
  return kOk;
}

}  // namespace fastard
