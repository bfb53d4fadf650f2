// A row of logits and one of the teacher's, held by a warp or swept by a block; the losses in
// kl.cuh and logit_rows.cu are written once over either. z and t are logits, after `soften`
// log-probabilities; q and p the probabilities.
#pragma once
#include "convert.cuh"
#include "team.cuh"

namespace fastard {
namespace device {

template <class A> struct Item {
  int index;
  A z, q, t, p;
};

// Which of the two rows a tensor belongs to; the student's type is the one that computes in A, and
// so is its gradient's.
enum Side { kStudent, kTeacher };
template <class A, Side SIDE, class F>
__device__ __forceinline__ void with_input(const RowArgs& a, F f) {
  if constexpr (SIDE == kStudent)
    with_own_type<A>(a.logits_type, f);
  else
    with_type(a.target_type, f);
}
template <class A, Side SIDE, class F>
__device__ __forceinline__ void with_gradient(const RowArgs& a, F f) {
  if constexpr (SIDE == kStudent)
    with_own_type<A>(a.dlogits_type, f);
  else
    with_type(a.dtarget_type, f);
}

// What turns a logit v into its log-probability, (v - top) - log_sum.
template <class A> struct Soft {
  A top, log_sum, inverse;
};

// A temperature's inverse for each of the two rows.
template <class A> struct Factors {
  A student, teacher;
};

// Classes a lane holds: K of each of the four values an item has, of which those that a loss does
// not use cost nothing. Aligned rows (`wide`) go in groups of 4 a lane, others one by one.
template <class A, int K, bool TEACHER> struct WarpRow {
  const RowArgs& a;
  int64_t base;
  int classes, lane;
  bool wide;
  Factors<A> factors;
  Soft<A> student, teacher;
  A z[K], q[K], t[K], p[K];

  __device__ __forceinline__ WarpRow(const RowArgs& args, int64_t row, bool groups,
                                     Factors<A> given)
      : a(args),
        base(row * args.classes),
        classes(int(args.classes)),
        lane(threadIdx.x % 32),
        wide(K >= 4 && groups),
        factors(given) {
    read<kStudent>(a.logits, factors.student, z);
    if (TEACHER) read<kTeacher>(a.target, factors.teacher, t);
  }
  __device__ __forceinline__ A sum(A v) { return over_warp<Add>(v); }
  template <class T> __device__ __forceinline__ T most(T v) { return over_warp<Max>(v); }

  __device__ __forceinline__ void soften() {
    student = softened(z, q);
    if (TEACHER) teacher = softened(t, p);
  }
  template <class F> __device__ __forceinline__ void each(F f) {
#pragma unroll
    for (int k = 0; k < K; ++k)
      if (index(k) < classes) f(item(k));
  }
  // Stores f(item) of every class.
  template <Side SIDE, class F> __device__ __forceinline__ void write(void* out, F f) {
    A value[K];
#pragma unroll
    for (int k = 0; k < K; ++k) value[k] = f(item(k));
    if (!out) return;
    with_gradient<A, SIDE>(a, [&](auto tag) {
      using T = decltype(tag);
      if (wide) {
#pragma unroll
        for (int k = 0; k + 4 <= K; k += 4) {
          if (index(k) >= classes) continue;
          Pack<T, 4> pack;
#pragma unroll
          for (int j = 0; j < 4; ++j) pack.v[j] = narrow<T>(value[k + j]);
          put(out, base + index(k), pack);
        }
      } else {
#pragma unroll
        for (int k = 0; k < K; ++k)
          if (index(k) < classes) static_cast<T*>(out)[base + index(k)] = narrow<T>(value[k]);
      }
    });
  }

 private:
  __device__ __forceinline__ int index(int k) const {
    return wide ? lane * 4 + (k / 4 * 128 + k % 4) : lane + k * 32;
  }
  __device__ __forceinline__ Item<A> item(int k) const {
    return {index(k), z[k], q[k], t[k], p[k]};
  }
  // Beyond the row: -inf, whose probability is 0.
  template <Side SIDE>
  __device__ __forceinline__ void read(const void* data, A factor, A (&out)[K]) {
#pragma unroll
    for (int k = 0; k < K; ++k) out[k] = -A(INFINITY);
    with_input<A, SIDE>(a, [&](auto tag) {
      using T = decltype(tag);
      if (wide) {
#pragma unroll
        for (int k = 0; k + 4 <= K; k += 4) {
          if (index(k) >= classes) continue;
          const Pack<T, 4> pack = fetch<T, 4>(data, base + index(k));
#pragma unroll
          for (int j = 0; j < 4; ++j) out[k + j] = A(widen(pack.v[j])) * factor;
        }
      } else {
#pragma unroll
        for (int k = 0; k < K; ++k)
          if (index(k) < classes)
            out[k] = A(widen(static_cast<const T*>(data)[base + index(k)])) * factor;
      }
    });
  }
  __device__ __forceinline__ Soft<A> softened(A (&logit)[K], A (&probability)[K]) {
    A top = -A(INFINITY), total = 0;
#pragma unroll
    for (int k = 0; k < K; ++k) top = greater(top, logit[k]);
    top = most(top);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      logit[k] -= top;
      probability[k] = exponential(logit[k]);
      total += probability[k];
    }
    total = sum(total);
    const Soft<A> soft = {top, logarithm(total), A(1) / total};
#pragma unroll
    for (int k = 0; k < K; ++k) {
      logit[k] -= soft.log_sum;
      probability[k] *= soft.inverse;
    }
    return soft;
  }
};

// A row of any length: read once for both softmaxes (online), again in every sweep, by then from
// the L2 cache.
template <class A, bool TEACHER> struct BlockRow {
  const RowArgs& a;
  int64_t base;
  int classes;
  bool wide, soft;
  Factors<A> factors;
  Soft<A> student, teacher;
  Team team;

  __device__ __forceinline__ BlockRow(const RowArgs& args, int64_t row, bool groups,
                                      Factors<A> given)
      : a(args),
        base(row * args.classes),
        classes(int(args.classes)),
        wide(groups),
        soft(false),
        factors(given),
        student{},
        teacher{},
        team(0, 1) {}
  __device__ __forceinline__ A sum(A v) { return team.over<Add>(v); }
  template <class T> __device__ __forceinline__ T most(T v) { return team.over<Max>(v); }

  __device__ __forceinline__ void soften() {
    A top[2] = {-A(INFINITY), -A(INFINITY)}, total[2] = {0, 0};
    if (wide)
      online<4>(top, total);
    else
      online<1>(top, total);
    A most[2] = {top[0], top[1]};
    team.over<Max>(most);
#pragma unroll
    for (int i = 0; i < 2; ++i)
      total[i] *= top[i] == most[i] ? A(1) : exponential(top[i] - most[i]);
    team.over<Add>(total);
    student = {most[0], logarithm(total[0]), A(1) / total[0]};
    teacher = {most[1], logarithm(total[1]), A(1) / total[1]};
    soft = true;
  }
  template <class F> __device__ __forceinline__ void each(F f) {
    if (wide)
      sweep<kStudent, 4>(f, nullptr);
    else
      sweep<kStudent, 1>(f, nullptr);
  }
  template <Side SIDE, class F> __device__ __forceinline__ void write(void* out, F f) {
    if (wide)
      sweep<SIDE, 4>(f, out);
    else
      sweep<SIDE, 1>(f, out);
  }

 private:
  template <Side SIDE, int V>
  __device__ __forceinline__ void read(const void* data, int i, A factor, A (&out)[V]) {
    with_input<A, SIDE>(a, [&](auto tag) {
      const auto pack = fetch<decltype(tag), V>(data, base + i);
#pragma unroll
      for (int j = 0; j < V; ++j) out[j] = A(widen(pack.v[j])) * factor;
    });
  }
  template <int V> __device__ __forceinline__ void read_both(int i, A (&z)[V], A (&t)[V]) {
    read<kStudent>(a.logits, i, factors.student, z);
    if (TEACHER) read<kTeacher>(a.target, i, factors.teacher, t);
  }
  // Adds V logits to a running sum of exp(v - top). -inf adds nothing, NaN and +inf make it NaN.
  template <int V> static __device__ __forceinline__ void add(const A (&v)[V], A& top, A& total) {
    A most = top;
#pragma unroll
    for (int j = 0; j < V; ++j) most = v[j] > most ? v[j] : most;
    if (most > top) total = total * exponential(top - most) + (most - most);
    top = most;
#pragma unroll
    for (int j = 0; j < V; ++j) total += v[j] == -A(INFINITY) ? A(0) : exponential(v[j] - top);
  }
  template <int V> __device__ __forceinline__ void online(A (&top)[2], A (&total)[2]) {
#pragma unroll 2
    for (int i = threadIdx.x * V; i < classes; i += blockDim.x * V) {
      A z[V], t[V];
      read_both<V>(i, z, t);
      add<V>(z, top[0], total[0]);
      if (TEACHER) add<V>(t, top[1], total[1]);
    }
  }
  __device__ __forceinline__ Item<A> item(int index, A z, A t) const {
    if (!soft) return {index, z, A(0), t, A(0)};
    z -= student.top;
    const A q = exponential(z) * student.inverse;
    if (!TEACHER) return {index, z - student.log_sum, q, A(0), A(0)};
    t -= teacher.top;
    const A p = exponential(t) * teacher.inverse;
    return {index, z - student.log_sum, q, t - teacher.log_sum, p};
  }
  template <Side SIDE, int V, class F> __device__ __forceinline__ void sweep(F f, void* out) {
#pragma unroll 2
    for (int i = threadIdx.x * V; i < classes; i += blockDim.x * V) {
      A z[V], t[V] = {}, value[V];
      read_both<V>(i, z, t);
#pragma unroll
      for (int j = 0; j < V; ++j) value[j] = apply(f, item(i + j, z[j], t[j]));
      if (!out) continue;
      with_gradient<A, SIDE>(a, [&](auto tag) {
        Pack<decltype(tag), V> pack;
#pragma unroll
        for (int j = 0; j < V; ++j) pack.v[j] = narrow<decltype(tag)>(value[j]);
        put(out, base + i, pack);
      });
    }
  }
  template <class F> static __device__ __forceinline__ A apply(F& f, const Item<A>& item) {
    if constexpr (std::is_void_v<decltype(f(item))>)
      return f(item), A(0);
    else
      return f(item);
  }
};

}  // namespace device
}  // namespace fastard
