// The exact projection onto an L1 ball and a box: its threshold is searched without sorting, as on
// the CPU, over a sample that stays on chip where it fits: in a block's registers (12,288
// elements), else in shared memory, of a cluster of 8 blocks where the device has them (231,000
// elements); larger samples are read again in every pass.
#pragma once
#include "images.cuh"
#include "team.cuh"

namespace fastard {
namespace device {

enum Place { kRegisters, kShared, kReread };

// Elements a thread keeps in registers, and threads in a block: few of many, so that nothing
// spills.
template <class X> constexpr int kHeld = std::is_same_v<X, double> ? 6 : 24;
constexpr int kAhead = 6;  // loads in flight of them
template <Place PLACE> constexpr int kMostThreads = PLACE == kRegisters ? 512 : 1024;

// The part of a sample that this block, one of `size`, works on: elements 0, 1, ... of it.
template <class T, class Arguments> struct Part {
  using X = T;
  using A = Accumulator<X>;
  const Arguments& a;
  int64_t which, base;
  int rank, length;
  A lo, hi;

  __device__ __forceinline__ Part(const Arguments& args, int size, A low, A high)
      : a(args), which(blockIdx.x / size), rank(int(blockIdx.x % size)), lo(low), hi(high) {
    const int64_t each = (a.n + size - 1) / size;
    const int64_t first = rank * each < a.n ? rank * each : a.n;
    base = which * a.n + first;
    length = int(a.n - first < each ? a.n - first : each);
  }
  __device__ __forceinline__ A centre(int i) const {
    return A(widen(static_cast<const X*>(a.x)[base + i]));
  }
};

// Two values an element, in the end the displacement u and its room in the box. Every thread keeps
// to its own elements, so that no barrier is needed between passes. `place` calls
// use(i, one, two, load(i)) for each, several loads ahead; `each` also meets padding, zeros that no
// pass counts. Source is a Part.
template <class Source, Place PLACE> struct Kept;

template <class Source> struct Kept<Source, kRegisters> : Source {
  using A = typename Source::A;
  static constexpr int kMine = kHeld<typename Source::X>;
  A one[kMine], two[kMine];
  __device__ __forceinline__ Kept(const Source& source) : Source(source) {}

  template <class Load, class Use> __device__ __forceinline__ void place(Load load, Use use) {
    int start = threadIdx.x;
#pragma unroll
    for (int from = 0; from < kMine; from += kAhead) {
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
    for (int k = 0; k < kMine; ++k) f(one[k], two[k]);
  }
};
template <class Source> struct Kept<Source, kShared> : Source {
  using A = typename Source::A;
  A *one, *two;
  __device__ __forceinline__ Kept(const Source& source) : Source(source) {
    extern __shared__ double pool[];
    one = reinterpret_cast<A*>(pool);
    two = one + source.length;
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
// Keeps nothing: in every pass Source::again(i, one, two) computes both values from memory.
template <class Source> struct Kept<Source, kReread> : Source {
  using A = typename Source::A;
  __device__ __forceinline__ Kept(const Source& source) : Source(source) {}

  template <class Load, class Use> __device__ __forceinline__ void place(Load load, Use use) {
    for (int i = threadIdx.x; i < this->length; i += blockDim.x) {
      A one, two;
      this->again(i, one, two);
      use(i, one, two, load(i));
    }
  }
  template <class F> __device__ __forceinline__ void each(F f) {
    place([](int) { return 0; }, [&](int, A& one, A& two, int) { f(one, two); });
  }
};

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

// Writes x plus the projection of the displacements that `sample` holds, and shows each coordinate
// x, its displacement and what is kept of it.
template <class S, class Seen>
__device__ __forceinline__ void l1_project(S& sample, Team& team, Seen seen) {
  using X = typename S::X;
  using A = typename S::A;
  const A lambda = l1_threshold(sample, team, per_sample<A>(sample.a.eps, sample.which));
  X* stored = static_cast<X*>(sample.a.x_adv) + sample.base;
  sample.place([&](int i) { return sample.centre(i); },
               [&](int i, A& u, A& room, A x) {
                 const A kept = l1_shrunk(magnitude(u), room, lambda);
                 seen(x, u, kept);
                 const A moved_to = clamp(x + (u < A(0) ? -kept : kept), sample.lo, sample.hi);
                 stored[i] = narrow_towards<X>(moved_to, x);
               });
}

// Kernels::of<PLACE> is the kernel for samples kept there; blocks of a sample are its argument.
template <class X, class Kernels, class Arguments> int l1_launch(const Arguments& a, void* stream) {
  const int64_t threads = ceil_div(a.n, kHeld<X>);
  if (threads <= kMostThreads<kRegisters>)
    return launch(Kernels::template of<kRegisters>, a.batch, whole_warps(threads), 0, 1, stream, a,
                  1);
  int64_t room = 0, size = 1;
  int code = shared_memory<Kernels::template of<kShared>>(&room);
  const auto bytes = [&] { return 2 * ceil_div(a.n, size) * int64_t(sizeof(Accumulator<X>)); };
  if (!code && bytes() > room) code = cluster_size<Kernels::template of<kShared>>(&size);
  if (code) return code;
  const bool held = bytes() <= room;
  return launch(held ? Kernels::template of<kShared> : Kernels::template of<kReread>,
                a.batch * size, kMostThreads<kShared>, held ? size_t(bytes()) : 0, int(size),
                stream, a, int(size));
}

// Kernels<X> are those for the images' type X.
template <template <class> class Kernels, class Arguments>
int l1_launch_any(const Arguments& a, void* stream) {
  // Places and counts are ints.
  if (a.n > kMostPlaces) return cudaErrorInvalidValue;
  if (a.x_type == kF32) return l1_launch<float, Kernels<float>>(a, stream);
  if (a.x_type == kBF16) return l1_launch<BF16, Kernels<BF16>>(a, stream);
  if (a.x_type == kF16) return l1_launch<F16, Kernels<F16>>(a, stream);
  return l1_launch<double, Kernels<double>>(a, stream);
}

}  // namespace device
}  // namespace fastard
