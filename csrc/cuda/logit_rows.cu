// Row losses with their gradients in the logits. Bytes a class, kl and mixture in fp32: 8 read +
// 4 written (bf16: half of that), 4 more for the teacher's gradient; ce, margin and dlr: 4 + 4.
// Expected: bound by memory, at 85 % or more of the copy bandwidth for 1,000 classes (8,192 rows of
// kl in fp32 are 98 MB: 29 us at 3.35 TB/s, 35 us at 85 %; ce: 66 MB, 23 us); beyond 1,024 classes
// rows are read twice, the second time from the L2 cache.
#include "kl.cuh"

namespace fastard {
namespace device {

template <class A> __device__ __forceinline__ A raw(const RowArgs& a, int64_t row, int64_t c) {
  A value = 0;
  with_own_type<A>(a.logits_type, [&](auto tag) {
    value = A(widen(static_cast<const decltype(tag)*>(a.logits)[row * a.classes + c]));
  });
  return value;
}
// A label outside the row cannot be refused without a synchronisation: it becomes 0, and the scale
// that all of the row's results are multiples of becomes NaN.
template <class A>
__device__ __forceinline__ int checked(const RowArgs& a, int64_t label, A* scale) {
  if (label >= 0 && label < a.classes) return int(label);
  *scale = A(NAN);
  return 0;
}

struct CE {
  static constexpr bool kPaired = false;
  template <class A> static __device__ __forceinline__ Factors<A> factors(const RowArgs&) {
    return {A(1), A(1)};
  }
  template <class A, class Row, class Done>
  static __device__ __forceinline__ void run(Row& row, const RowArgs& a, int64_t r, Done done) {
    A scale = ascent<A>(a);
    const int y = checked(a, a.labels[r], &scale);
    row.soften();
    const A log_q = raw<A>(a, r, y) - row.student.top - row.student.log_sum;
    done(-log_q * scale);
    row.template write<kStudent>(
        a.dlogits, [&](const Item<A>& i) { return (i.q - (i.index == y ? A(1) : A(0))) * scale; });
  }
};

struct Mixture {
  static constexpr bool kPaired = true;
  template <class A> static __device__ __forceinline__ Factors<A> factors(const RowArgs& a) {
    return {A(1), A(1) / A(a.temperature)};
  }
  template <class A, class Row, class Done>
  static __device__ __forceinline__ void run(Row& row, const RowArgs& a, int64_t r, Done done) {
    A scale = ascent<A>(a);
    const A mix = A(a.mix);
    const int y = checked(a, a.labels[r], &scale);
    row.soften();
    A loss = 0;
    row.template write<kStudent>(a.dlogits, [&](const Item<A>& i) {
      const A m = i.p * mix + (i.index == y ? A(1) - mix : A(0));
      loss += kl_term(m, A(0), i.z);
      return (i.q - m) * scale;
    });
    done(row.sum(loss) * scale);
  }
};

// Margin and DLR depend on a few places of the row only.
struct Ranked {
  static constexpr bool kPaired = false;
  template <class A> static __device__ __forceinline__ Factors<A> factors(const RowArgs&) {
    return {A(1), A(1)};
  }
  // The k-th largest logit's place after those in `found`, the first among equals; NaN ranks last.
  template <class A, class Row>
  static __device__ __forceinline__ int next(Row& row, const int (&found)[4]) {
    const auto key = [](const Item<A>& i) { return i.z == i.z ? i.z : -A(INFINITY); };
    const auto open = [&](const Item<A>& i) {
      return i.index != found[0] && i.index != found[1] && i.index != found[2];
    };
    A top = -A(INFINITY);
    row.each([&](const Item<A>& i) {
      if (open(i)) top = greater(top, key(i));
    });
    top = row.most(top);
    int place = INT32_MIN;
    row.each([&](const Item<A>& i) {
      if (open(i) && key(i) == top && -i.index > place) place = -i.index;
    });
    return -row.most(place);
  }
  template <class A, class Row, class Done>
  static __device__ __forceinline__ void run(Row& row, const RowArgs& a, int64_t r, Done done) {
    const bool dlr = a.kind == kDLR, aimed = dlr && a.targeted;
    A scale = A(a.scale);
    const int y = checked(a, a.labels[r], &scale);
    const int goal = aimed ? checked(a, a.goals[r], &scale) : 0;
    int top[4] = {-1, -1, -1, -1};
    top[0] = next<A>(row, top);
    top[1] = next<A>(row, top);
    const int other = aimed ? goal : (top[0] == y ? top[1] : top[0]);
    const A z_y = raw<A>(a, r, y), z_other = raw<A>(a, r, other);
    A loss, slope, bend = 0, tail = 0;
    if (dlr) {
      top[2] = next<A>(row, top);
      if (aimed) top[3] = next<A>(row, top);
      const A third = raw<A>(a, r, top[2]), fourth = aimed ? raw<A>(a, r, top[3]) : A(0);
      const A spread = dlr_spread(raw<A>(a, r, top[0]), third, fourth, aimed);
      const A gap = z_y - z_other;
      loss = -gap / spread;
      slope = scale / spread;
      bend = scale * gap / (spread * spread);
      tail = aimed ? A(0.5) * bend : bend;
    } else {
      const A side = a.targeted ? A(-1) : A(1), kappa = A(a.kappa);
      loss = margin_loss(z_y, z_other, kappa, side);
      slope = margin_active(z_y, z_other, kappa, side) ? side * scale : A(0);
    }
    done(loss * scale);
    const A start = scale == scale ? A(0) : scale;
    row.template write<kStudent>(a.dlogits, [&](const Item<A>& i) {
      A d = start;
      d -= i.index == y ? slope : A(0);
      d += i.index == other ? slope : A(0);
      d += i.index == top[0] ? bend : A(0);
      d -= i.index == top[2] || i.index == top[3] ? tail : A(0);
      return d;
    });
  }
};

template <class Loss, class A, int K> __global__ void __launch_bounds__(kRowThreads, kWarpBlocks<K>)
    warp_rows(const __grid_constant__ RowArgs a, bool wide) {
  const int64_t r = int64_t(blockIdx.x) * (kRowThreads / 32) + threadIdx.x / 32;
  if (r >= a.rows) return;
  WarpRow<A, K, Loss::kPaired> row(a, r, wide, Loss::template factors<A>(a));
  Loss::template run<A>(row, a, r, [&](A loss) {
    if (row.lane == 0) static_cast<A*>(a.loss)[r] = loss;
  });
}
template <class Loss, class A> __global__ void __launch_bounds__(kBlockThreads, 1)
    block_rows(const __grid_constant__ RowArgs a, bool wide) {
  BlockRow<A, Loss::kPaired> row(a, blockIdx.x, wide, Loss::template factors<A>(a));
  Loss::template run<A>(row, a, blockIdx.x, [&](A loss) {
    if (threadIdx.x == 0) static_cast<A*>(a.loss)[blockIdx.x] = loss;
  });
}

template <class Loss, class A> struct LossKernels {
  template <int K> static constexpr auto warp = warp_rows<Loss, A, K>;
  static constexpr auto block = block_rows<Loss, A>;
};

template <class A> static int launch_kind(const RowArgs& a, void* stream) {
  switch (a.kind) {
    case kKL: return launch_rows<A, LossKernels<KL, A>>(a, stream);
    case kCE: return launch_rows<A, LossKernels<CE, A>>(a, stream);
    case kMixture: return launch_rows<A, LossKernels<Mixture, A>>(a, stream);
    default: return launch_rows<A, LossKernels<Ranked, A>>(a, stream);
  }
}

}  // namespace device

int cuda_logit_rows(const RowArgs& a, void* stream) {
  if (a.rows == 0) return cudaSuccess;
  return a.logits_type == kF64 ? device::launch_kind<double>(a, stream)
                               : device::launch_kind<float>(a, stream);
}

}  // namespace fastard
