// The L1 step: the sign on the coordinates of largest gradient, then the exact projection onto
// ball and box. Bytes an element, fp32: 12 read + 4 written, and x_adv, grad and x once or twice
// more from the L2 cache. About 20 counting passes and 8 of Newton's go over the sample on chip.
// Expected: bound by instructions, at about half the copy bandwidth for 3x32x32 (128 of them: one
// wave, 7 us; 8,192: 403 MB, 0.24 ms at half of 3.35 TB/s).
#include "l1_search.cuh"
#include "step.cuh"

namespace fastard {
namespace device {

template <class X> struct StepPart : Part<X, StepArgs> {
  using A = Accumulator<X>;
  A threshold, step;
  bool displaced;
  __device__ __forceinline__ StepPart(const StepArgs& args, int size)
      : Part<X, StepArgs>(args, size, A(args.clip_min), A(args.clip_max)), displaced(false) {}

  __device__ __forceinline__ A now(int i) const {
    return A(widen(static_cast<const X*>(this->a.x_adv)[this->base + i]));
  }
  __device__ __forceinline__ A displacement(A g, A v, A x) const {
    return v + (magnitude(g) >= threshold ? signed_step(g, step) : A(0)) - x;
  }
  __device__ __forceinline__ void again(int i, A& one, A& two) const {
    const A g = load_any<A>(this->a.grad, this->a.grad_type, this->base + i);
    one = g == g ? g : A(0);
    two = 0;
    if (!displaced) return;
    const A x = this->centre(i);
    one = displacement(one, now(i), x);
    two = l1_room(one, x, this->lo, this->hi);
  }
};

// First the gradient in `one`, then the displacement and its room.
template <class X, Place PLACE> struct Moving : Kept<StepPart<X>, PLACE> {
  using A = Accumulator<X>;
  __device__ __forceinline__ Moving(const StepPart<X>& part) : Kept<StepPart<X>, PLACE>(part) {}

  // A NaN counts as 0, which neither ranks nor moves.
  __device__ __forceinline__ void read_gradient() {
    if constexpr (PLACE != kReread) {
      with_type(this->a.grad_type, [&](auto tag) {
        const auto* g = static_cast<const decltype(tag)*>(this->a.grad) + this->base;
        this->place([&](int i) { return g[i]; },
                    [&](int, A& one, A& two, auto raw) {
                      const A value = A(widen(raw));
                      one = value == value ? value : A(0);
                      two = A(0);
                    });
      });
    }
  }
  __device__ __forceinline__ void displace(A from, A by) {
    this->threshold = from;
    this->step = by;
    this->displaced = true;
    if constexpr (PLACE != kReread) {
      this->place([&](int i) { return this->centre(i); }, [&](int, A&, A& two, A x) { two = x; });
      this->place([&](int i) { return this->now(i); },
                  [&](int, A& one, A& two, A v) {
                    const A x = two;
                    one = this->displacement(one, v, x);
                    two = l1_room(one, x, this->lo, this->hi);
                  });
    }
  }
};

template <class A> using KeyBits = std::conditional_t<sizeof(A) == 8, uint64_t, uint32_t>;
__device__ __forceinline__ float key_of(uint32_t bits) { return __uint_as_float(bits); }
__device__ __forceinline__ double key_of(uint64_t bits) { return __longlong_as_double(bits); }

// The k-th largest |gradient|, bit by bit from the top: non-negative keys order as their bits do,
// and a candidate that is a NaN's bits has no key above it either way.
template <class A, class S> __device__ A kth_largest(S& sample, Team& team, int64_t k) {
  KeyBits<A> threshold = 0;
  for (KeyBits<A> bit = KeyBits<A>(1) << (sizeof(A) * 8 - 2); bit; bit >>= 1) {
    const A candidate = key_of(threshold | bit);
    int mine = 0;
    sample.each([&](A& g, A&) { mine += magnitude(g) >= candidate; });
    const int64_t count = team.over<Add>(mine);
    if (count >= k) threshold |= bit;
    if (count == k) break;
  }
  return key_of(threshold);
}

template <class X, Place PLACE> __global__ void __launch_bounds__(kMostThreads<PLACE>, 1)
    l1_kernel(const __grid_constant__ StepArgs a, int blocks) {
  using A = Accumulator<X>;
  const int size = PLACE == kRegisters ? 1 : blocks;
  Moving<X, PLACE> sample(StepPart<X>(a, size));
  Team team(sample.rank, size);
  const A alpha = per_sample<A>(a.alpha, sample.which);

  sample.read_gradient();
  const double left = a.l1_sparsity.data
                          ? double((A(1) - per_sample<A>(a.l1_sparsity, sample.which)) * A(a.n))
                          : (1.0 - a.l1_sparsity.value) * double(a.n);
  int64_t skipped = int64_t(left);
  skipped = skipped < 0 ? 0 : (skipped < a.n ? skipped : a.n - 1);
  const A threshold = kth_largest<A>(sample, team, a.n - skipped);
  int moved = 0;
  sample.each([&](A& g, A&) {
    const A key = magnitude(g);
    moved += (key >= threshold) & (key > A(0));
  });
  moved = team.over<Add>(moved);
  sample.displace(threshold, alpha / (A(moved) + A(kTinyCount)));
  int count = 0;
  l1_project(sample, team, [&](A x, A u, A kept) { count += l1_moved(x, u, kept); });
  if (a.moved) {
    count = team.over<Add>(count);
    if (threadIdx.x == 0 && sample.rank == 0) static_cast<A*>(a.moved)[sample.which] = A(count);
  }
  // A loop of its own: unrolled over the registers its divisions would spill.
  if (a.feed) {
    for (int i = threadIdx.x; i < sample.length; i += blockDim.x) {
      const A value[1] = {sample.now(i)};
      write_feed<1>(a, sample.base + i, value);
    }
  }
  team.leave();
}

template <class X> struct StepKernels {
  template <Place PLACE> static constexpr auto of = l1_kernel<X, PLACE>;
};

int l1_step_launch(const StepArgs& a, void* stream) {
  return l1_launch_any<StepKernels>(a, stream);
}

}  // namespace device
}  // namespace fastard
