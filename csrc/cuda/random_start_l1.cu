// The L1 start: the noise itself, projected exactly onto the ball and, if the start is clipped, the
// box. Bytes an element, fp32: 8 read (x, noise) + 4 written, and x once more from the L2 cache;
// about 10 of Newton's passes go over the sample on chip. Expected: bound by instructions, at about
// the copy bandwidth for 3x32x32 (128 of them: one wave, 4 us; 8,192: 302 MB, 0.1 ms).
#include "l1_search.cuh"
#include "start.cuh"

namespace fastard {
namespace device {

// Unclipped, the box is one that no displacement reaches.
template <class A> __device__ __forceinline__ A low(const StartArgs& a) {
  return a.clip ? A(a.clip_min) : -A(1e30);
}
template <class A> __device__ __forceinline__ A high(const StartArgs& a) {
  return a.clip ? A(a.clip_max) : A(1e30);
}

template <class X> struct StartPart : Part<X, StartArgs> {
  using A = Accumulator<X>;
  __device__ __forceinline__ StartPart(const StartArgs& args, int size)
      : Part<X, StartArgs>(args, size, low<A>(args), high<A>(args)) {}
  __device__ __forceinline__ void again(int i, A& one, A& two) const {
    one = load_any<A>(this->a.noise, this->a.noise_type, this->base + i);
    two = l1_room(one, this->centre(i), this->lo, this->hi);
  }
};

template <class X, Place PLACE> __global__ void __launch_bounds__(kMostThreads<PLACE>, 1)
    l1_start_kernel(const __grid_constant__ StartArgs a, int blocks) {
  using A = Accumulator<X>;
  const int size = PLACE == kRegisters ? 1 : blocks;
  Kept<StartPart<X>, PLACE> sample(StartPart<X>(a, size));
  Team team(sample.rank, size);
  if constexpr (PLACE != kReread) {
    with_type(a.noise_type, [&](auto tag) {
      const auto* noise = static_cast<const decltype(tag)*>(a.noise) + sample.base;
      sample.place([&](int i) { return noise[i]; },
                   [&](int, A& one, A&, auto raw) { one = A(widen(raw)); });
    });
    sample.place([&](int i) { return sample.centre(i); },
                 [&](int, A& one, A& two, A x) { two = l1_room(one, x, sample.lo, sample.hi); });
  }
  l1_project(sample, team, [](A, A, A) {});
  team.leave();
}

template <class X> struct StartKernels {
  template <Place PLACE> static constexpr auto of = l1_start_kernel<X, PLACE>;
};

int l1_start_launch(const StartArgs& a, void* stream) {
  return l1_launch_any<StartKernels>(a, stream);
}

}  // namespace device
}  // namespace fastard
