// The L1 step: the sign on the coordinates of largest gradient, then the exact projection onto
// ball and box; both thresholds are searched without sorting, as on the CPU. Bytes an element,
// fp32: 12 read + 4 written, and x_adv, grad and x once or twice more from the L2 cache. About 20
// counting passes and 8 of Newton's go over the sample on chip: in registers (12,288 elements),
// else in shared memory, of a cluster of 8 blocks where the device has them (231,000 elements);
// larger samples are read again in every pass. Expected: bound by instructions, at about half the
// copy bandwidth for 3x32x32.
#include "step.cuh"
#include "team.cuh"

namespace fastard {
namespace device {

enum Place { kRegisters, kShared, kReread };

constexpr int64_t kMostElements = 1 << 30;
// Elements a thread keeps in registers, and threads in a block: few of many, so that nothing
// spills.
template <class X> constexpr int kHeld = std::is_same_v<X, double> ? 6 : 24;
constexpr int kAhead = 6;  // loads in flight of them
template <Place PLACE> constexpr int kMostThreads = PLACE == kRegisters ? 512 : 1024;

// The part of a sample that this block works on: elements first, first + 1, ... of it.
template <class X> struct Part {
  const StepArgs& a;
  int64_t base;
  int length;
  using A = Accumulator<X>;

  __device__ __forceinline__ A now(int i) const {
    return A(widen(static_cast<const X*>(a.x_adv)[base + i]));
  }
  __device__ __forceinline__ A centre(int i) const {
    return A(widen(static_cast<const X*>(a.x)[base + i]));
  }
  __device__ __forceinline__ A gradient(int i) const {
    return load_any<A>(a.grad, a.grad_type, base + i);
  }
};

// Two values an element: first the gradient, then the displacement u and its room in the box.
// Every thread keeps to its own elements, so that no barrier is needed between passes. `place`
// calls use(i, one, two, load(i)) for each, several loads ahead; `each` also meets padding, zeros
// that no pass counts.
template <class X, Place PLACE> struct Kept;

template <class X> struct Kept<X, kRegisters> : Part<X> {
  using A = Accumulator<X>;
  A one[kHeld<X>], two[kHeld<X>];
  __device__ __forceinline__ Kept(const Part<X>& part) : Part<X>(part) {}

  template <class Load, class Use> __device__ __forceinline__ void place(Load load, Use use) {
    int start = threadIdx.x;
#pragma unroll
    for (int from = 0; from < kHeld<X>; from += kAhead) {
      // Makes the indices new ones: kept from call to call, or loaded from all at once, they spill.
      asm volatile("" : "+r"(start)::"memory");
      decltype(load(0)) loaded[kAhead];
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const int i = start + (from + k) * blockDim.x;
        if (i < this->length) loaded[k] = load(i);
      }
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const int i = start + (from + k) * blockDim.x;
        if (i < this->length)
          use(i, one[from + k], two[from + k], loaded[k]);
        else
          one[from + k] = two[from + k] = A(0);
      }
    }
  }
  template <class F> __device__ __forceinline__ void each(F f) {
#pragma unroll
    for (int k = 0; k < kHeld<X>; ++k) f(one[k], two[k]);
  }
};
template <class X> struct Kept<X, kShared> : Part<X> {
  using A = Accumulator<X>;
  A *one, *two;
  __device__ __forceinline__ Kept(const Part<X>& part) : Part<X>(part) {
    extern __shared__ double pool[];
    one = reinterpret_cast<A*>(pool);
    two = one + part.length;
  }
  template <class Load, class Use> __device__ __forceinline__ void place(Load load, Use use) {
    for (int start = threadIdx.x; start < this->length; start += kAhead * blockDim.x) {
      decltype(load(0)) loaded[kAhead];
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const int i = start + k * blockDim.x;
        if (i < this->length) loaded[k] = load(i);
      }
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const int i = start + k * blockDim.x;
        if (i < this->length) use(i, one[i], two[i], loaded[k]);
      }
    }
  }
  template <class F> __device__ __forceinline__ void each(F f) {
#pragma unroll 4
    for (int i = threadIdx.x; i < this->length; i += blockDim.x) f(one[i], two[i]);
  }
};

template <class X, Place PLACE> struct Sample : Kept<X, PLACE> {
  using A = Accumulator<X>;
  A lo, hi;
  __device__ __forceinline__ Sample(const Part<X>& part)
      : Kept<X, PLACE>(part), lo(A(part.a.clip_min)), hi(A(part.a.clip_max)) {}

  // A NaN counts as 0, which neither ranks nor moves.
  __device__ __forceinline__ void read_gradient() {
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
  __device__ __forceinline__ void displace(A threshold, A step) {
    this->place([&](int i) { return this->centre(i); }, [&](int, A&, A& two, A x) { two = x; });
    this->place([&](int i) { return this->now(i); },
                [&](int, A& one, A& two, A v) {
                  const A x = two;
                  one = v + (magnitude(one) >= threshold ? signed_step(one, step) : A(0)) - x;
                  two = l1_room(one, x, lo, hi);
                });
  }
};

// Keeps nothing: every pass computes both values again from memory.
template <class X> struct Sample<X, kReread> : Part<X> {
  using A = Accumulator<X>;
  A lo, hi, threshold, step;
  bool displaced;
  __device__ __forceinline__ Sample(const Part<X>& part)
      : Part<X>(part), lo(A(part.a.clip_min)), hi(A(part.a.clip_max)), displaced(false) {}

  __device__ __forceinline__ void read_gradient() {}
  __device__ __forceinline__ void displace(A from, A by) {
    threshold = from;
    step = by;
    displaced = true;
  }
  template <class Load, class Use> __device__ __forceinline__ void place(Load load, Use use) {
    for (int i = threadIdx.x; i < this->length; i += blockDim.x) {
      A one = this->gradient(i), two = 0;
      one = one == one ? one : A(0);
      if (displaced) {
        const A x = this->centre(i);
        one = this->now(i) + (magnitude(one) >= threshold ? signed_step(one, step) : A(0)) - x;
        two = l1_room(one, x, lo, hi);
      }
      use(i, one, two, load(i));
    }
  }
  template <class F> __device__ __forceinline__ void each(F f) {
    place([](int) { return 0; }, [&](int, A& one, A& two, int) { f(one, two); });
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

// sum of shrunk sizes at lambda, and how many of them still follow lambda.
template <class A, class S>
__device__ __forceinline__ double l1_mass(S& sample, Team& team, A lambda, int* active) {
  A sum = 0;
  int moving = 0;
  sample.each([&](A& u, A& room) {
    const A size = magnitude(u);
    sum += l1_shrunk(size, room, lambda);
    moving += (size > lambda) & (size - lambda < room);
  });
  *active = team.over<Add>(moving);
  return team.over<Add>(double(sum));
}

// lambda with sum min(max(size - lambda, 0), room) = eps: Newton's step, guarded by bisection;
// the CPU's search, which says why.
template <class A, class S> __device__ A l1_threshold(S& sample, Team& team, A eps) {
  int active;
  double mass = l1_mass(sample, team, A(0), &active);
  if (mass <= eps) return A(0);
  A above = 0;
  sample.each([&](A& u, A&) { above = Max::of(above, magnitude(u)); });
  above = team.over<Max>(above);
  A below = 0, lambda = 0;
  const double close = double(eps) * (sizeof(A) == 4 ? 1e-7 : 1e-14);
  for (int step = 0; step < 200; ++step) {
    A next = active ? A(lambda + (mass - double(eps)) / double(active)) : below;
    if (!(next > below && next < above)) next = below + (above - below) / A(2);
    if (next == lambda || next <= below || next >= above) break;
    lambda = next;
    mass = l1_mass(sample, team, lambda, &active);
    if (mass > eps)
      below = lambda;
    else
      above = lambda;
    if (mass <= eps && double(eps) - mass <= close) return lambda;
  }
  return above;
}

template <class X, Place PLACE> __global__ void __launch_bounds__(kMostThreads<PLACE>, 1)
    l1_kernel(const __grid_constant__ StepArgs a, int blocks) {
  using A = Accumulator<X>;
  const int size = PLACE == kRegisters ? 1 : blocks;
  const int64_t which = blockIdx.x / size, each = (a.n + size - 1) / size;
  const int rank = int(blockIdx.x % size);
  const int64_t first = rank * each < a.n ? rank * each : a.n;
  const int length = int(a.n - first < each ? a.n - first : each);
  const A eps = per_sample<A>(a.eps, which), alpha = per_sample<A>(a.alpha, which);
  Sample<X, PLACE> sample(Part<X>{a, which * a.n + first, length});
  Team team(rank, size);

  sample.read_gradient();
  int64_t skipped = int64_t((1.0 - a.l1_sparsity) * double(a.n));
  skipped = skipped < 0 ? 0 : (skipped < a.n ? skipped : a.n - 1);
  const A threshold = kth_largest<A>(sample, team, a.n - skipped);
  int moved = 0;
  sample.each([&](A& g, A&) {
    const A key = magnitude(g);
    moved += (key >= threshold) & (key > A(0));
  });
  moved = team.over<Add>(moved);
  sample.displace(threshold, alpha / (A(moved) + A(kTinyCount)));

  const A lambda = l1_threshold(sample, team, eps);
  X* stored = static_cast<X*>(a.x_adv) + sample.base;
  sample.place([&](int i) { return sample.centre(i); },
               [&](int i, A& u, A& room, A x) {
                 const A kept = l1_shrunk(magnitude(u), room, lambda);
                 const A moved_to = clamp(x + (u < A(0) ? -kept : kept), sample.lo, sample.hi);
                 stored[i] = narrow_towards<X>(moved_to, x);
               });
  // A loop of its own: unrolled over the registers its divisions would spill.
  if (a.feed) {
    for (int i = threadIdx.x; i < length; i += blockDim.x) {
      const A value[1] = {sample.now(i)};
      write_feed<1>(a, sample.base + i, value);
    }
  }
  team.leave();
}

template <class X> int l1_launch(const StepArgs& a, void* stream) {
  const int64_t threads = ceil_div(a.n, kHeld<X>);
  if (threads <= kMostThreads<kRegisters>)
    return launch(l1_kernel<X, kRegisters>, a.batch, whole_warps(threads), 0, 1, stream, a, 1);
  // Places and counts are ints.
  if (a.n > kMostElements) return cudaErrorInvalidValue;
  int64_t room = 0, size = 1;
  int code = shared_memory<l1_kernel<X, kShared>>(&room);
  const auto bytes = [&] { return 2 * ceil_div(a.n, size) * int64_t(sizeof(Accumulator<X>)); };
  if (!code && bytes() > room) code = cluster_size<l1_kernel<X, kShared>>(&size);
  if (code) return code;
  const bool held = bytes() <= room;
  return launch(held ? l1_kernel<X, kShared> : l1_kernel<X, kReread>, a.batch * size,
                kMostThreads<kShared>, held ? size_t(bytes()) : 0, int(size), stream, a, int(size));
}

int l1_step_launch(const StepArgs& a, void* stream) {
  if (a.x_type == kF32) return l1_launch<float>(a, stream);
  if (a.x_type == kBF16) return l1_launch<BF16>(a, stream);
  if (a.x_type == kF16) return l1_launch<F16>(a, stream);
  return l1_launch<double>(a, stream);
}

}  // namespace device
}  // namespace fastard
