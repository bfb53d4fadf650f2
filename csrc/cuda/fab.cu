// FAB's iteration: a block a sample, a cluster of 8 for large ones where the device has them. A
// sample of up to 4,096 elements (2,048 in fp64) stays in registers; larger ones are read again in
// every pass, from the L2 cache where they fit. Bytes an element, fp32: 12 read, 4 written. Some 15
// passes with a reduction each (L1: 40) go over it: bound by latency, a few microseconds a sample,
// all samples at once.
#include "images.cuh"
#include "team.cuh"

// After convert.cuh, which names the instruction set.
#include "../fab.h"
#include "../fab_search.h"

namespace fastard {
namespace device {

constexpr int kFabThreads = 512;
// Elements a thread holds of each of three tensors.
template <class A> constexpr int kFabHeld = sizeof(A) == 8 ? 4 : 8;

// This block's part of a sample, a triple of gradient, point and original an element.
template <class A, int HELD> struct FabPart {
  const FabArgs& a;
  int64_t which, base;
  int rank, length;
  A w[HELD ? HELD : 1], at[HELD ? HELD : 1], x[HELD ? HELD : 1];

  __device__ __forceinline__ FabPart(const FabArgs& args, int size)
      : a(args), which(blockIdx.x / size), rank(int(blockIdx.x % size)) {
    const int64_t each = (a.n + size - 1) / size;
    const int64_t first = rank * each < a.n ? rank * each : a.n;
    base = which * a.n + first;
    length = int(a.n - first < each ? a.n - first : each);
    if constexpr (HELD > 0) {
#pragma unroll
      for (int k = 0; k < HELD; ++k) {
        const int i = threadIdx.x + k * blockDim.x;
        w[k] = at[k] = x[k] = A(0);
        if (i < length) read(i, w[k], at[k], x[k]);
      }
    }
  }
  __device__ __forceinline__ void read(int i, A& gradient, A& point, A& original) const {
    gradient = a.grad ? fab_finite(static_cast<const A*>(a.grad)[base + i]) : A(0);
    point = static_cast<const A*>(a.at)[base + i];
    original = static_cast<const A*>(a.x)[base + i];
  }
  // f(w, at, x) for each; what is held also has padding, whose gradient is 0.
  template <class F> __device__ __forceinline__ void each(F f) const {
    if constexpr (HELD > 0) {
#pragma unroll
      for (int k = 0; k < HELD; ++k) f(w[k], at[k], x[k]);
    } else {
      for (int i = threadIdx.x; i < length; i += blockDim.x) {
        A gradient, point, original;
        read(i, gradient, point, original);
        f(gradient, point, original);
      }
    }
  }
  // f(i, w, at, x), without padding.
  template <class F> __device__ __forceinline__ void place(F f) const {
    if constexpr (HELD > 0) {
#pragma unroll
      for (int k = 0; k < HELD; ++k) {
        const int i = threadIdx.x + k * blockDim.x;
        if (i < length) f(i, w[k], at[k], x[k]);
      }
    } else {
      for (int i = threadIdx.x; i < length; i += blockDim.x) {
        A gradient, point, original;
        read(i, gradient, point, original);
        f(i, gradient, point, original);
      }
    }
  }
};

template <class A, int NORM> __device__ __forceinline__ A fab_joined(A mine, Team& team) {
  if constexpr (NORM == kLinf) return team.over<Max>(mine);
  const double total = team.over<Add>(double(mine));
  return A(NORM == kL2 ? root(total) : total);
}
template <class A, int NORM> __device__ __forceinline__ void fab_grow(A& sum, A v) {
  if constexpr (NORM == kLinf)
    sum = greater(sum, magnitude(v));
  else
    sum += NORM == kL2 ? v * v : magnitude(v);
}

// The cut for one of the two points: ORIGINAL picks x, else at.
template <class A, int NORM, bool ORIGINAL, class P>
__device__ FabCut<A> fab_solve(const P& part, Team& team, double gap, A side, A most) {
  const A lo = A(part.a.clip_min), hi = A(part.a.clip_max);
  const auto room = [&](A w, A at, A x) {
    return fab_room<A, NORM>(w, side, ORIGINAL ? x : at, lo, hi);
  };
  if constexpr (NORM == kL1) {
    return fab_cut(gap, most, [&](A key) {
      A mass = 0;
      int count = 0;
      part.each([&](A w, A at, A x) {
        const A size = magnitude(w);
        mass += size >= key ? size * room(w, at, x) : A(0);
        count += size >= key;
      });
      const FabSums s = {team.over<Add>(double(mass)), 0, team.over<Add>(count)};
      return s;
    });
  } else {
    const A lambda = fab_lambda<A>(gap, [&](A now) {
      A gone = 0, slope = 0;
      part.each([&](A w, A at, A x) {
        const A size = magnitude(w), left = room(w, at, x);
        const bool full = fab_full<A, NORM>(size, left, now);
        gone += full ? size * left : A(0);
        slope += full ? A(0) : (NORM == kLinf ? size : size * size);
      });
      double sums[2] = {gone, slope};
      team.over<Add>(sums);
      const FabSums s = {sums[0], sums[1], 0};
      return s;
    });
    return {lambda, A(0), A(0), A(0)};
  }
}

template <class A, int NORM, int HELD> __global__ void __launch_bounds__(kFabThreads, 1)
    fab_kernel(const __grid_constant__ FabArgs a, int blocks) {
  const int size = HELD ? 1 : blocks;
  const int64_t which = blockIdx.x / size;
  A* sizes = static_cast<A*>(a.size);
  const A reached = sizes[which];
  const int tests = a.tests[which];
  const bool trying = a.trying[which], won = trying && a.fooled[which];
  // The same for all of a sample's threads.
  if (tests >= a.n_iter || reached <= A(a.limit) || (!won && !a.grad)) return;

  const FabPart<A, HELD> part(a, size);
  Team team(part.rank, size);
  const bool first = part.rank == 0 && threadIdx.x == 0;
  A *points = static_cast<A*>(a.at) + part.base, *bests = static_cast<A*>(a.best) + part.base;
  A moved = 0, dot = 0, most = 0;
  part.each([&](A w, A at, A x) {
    fab_grow<A, NORM>(moved, at - x);
    dot += w * (x - at);
    most = greater(most, magnitude(w));
  });
  // From here on, everyone has read the sample's state.
  const A found = fab_joined<A, NORM>(moved, team);
  if (won) {
    const bool closer = found < reached;
    const A beta = A(a.beta);
    part.place([&](int i, A, A at, A x) {
      if (closer) bests[i] = at;
      points[i] = x + (at - x) * beta;
    });
    if (first) {
      if (closer) sizes[which] = found;
      a.tests[which] = tests + 1;
      a.trying[which] = 0;
    }
    team.leave();
    return;
  }
  if (first) {
    a.tests[which] = tests + trying;
    if (tests + trying < a.n_iter) a.trying[which] = 1;
  }
  if (tests + trying >= a.n_iter) {
    team.leave();
    return;
  }

  const A gap = fab_finite(static_cast<const A*>(a.gap)[which]);
  double further = double(gap) + team.over<Add>(double(dot));
  further = further - further == 0 ? further : 0;
  most = team.over<Max>(most);
  const A side_at = gap >= A(0) ? A(1) : A(-1), side_x = further >= 0 ? A(1) : A(-1);
  const FabCut<A> cut_at =
      fab_solve<A, NORM, false>(part, team, double(magnitude(gap)), side_at, most);
  const FabCut<A> cut_x =
      fab_solve<A, NORM, true>(part, team, further < 0 ? -further : further, side_x, most);
  const A lo = A(a.clip_min), hi = A(a.clip_max), eta = A(a.eta);
  const auto shift = [&](A w, A side, A point, const FabCut<A>& cut) {
    const A move = fab_move<A, NORM>(magnitude(w), fab_room<A, NORM>(w, side, point, lo, hi), cut);
    return side * w > A(0) ? -move : move;
  };
  A one = 0, two = 0;
  part.each([&](A w, A at, A x) {
    fab_grow<A, NORM>(one, shift(w, side_at, at, cut_at));
    fab_grow<A, NORM>(two, shift(w, side_x, x, cut_x));
  });
  one = fab_joined<A, NORM>(one, team);
  two = fab_joined<A, NORM>(two, team);
  const A alpha = fab_alpha(one, two, A(a.alpha_max));
  part.place([&](int i, A w, A at, A x) {
    const A d_at = shift(w, side_at, at, cut_at), d_x = shift(w, side_x, x, cut_x);
    points[i] = fab_mixed(at, d_at, x, d_x, eta, alpha, lo, hi);
  });
  team.leave();
}

template <class A, int NORM> int fab_launch(const FabArgs& a, void* stream) {
  const int64_t threads = ceil_div(a.n, kFabHeld<A>);
  if (threads <= kFabThreads)
    return launch(fab_kernel<A, NORM, kFabHeld<A>>, a.batch, whole_warps(threads), 0, 1, stream, a,
                  1);
  constexpr auto again = fab_kernel<A, NORM, 0>;
  int64_t size = 1;
  const int code = cluster_size<again>(&size);
  if (code) return code;
  return launch(again, a.batch * size, kFabThreads, 0, int(size), stream, a, int(size));
}
template <class A> int fab_launch_any(const FabArgs& a, void* stream) {
  if (a.norm == kLinf) return fab_launch<A, kLinf>(a, stream);
  return a.norm == kL2 ? fab_launch<A, kL2>(a, stream) : fab_launch<A, kL1>(a, stream);
}

}  // namespace device

int cuda_fab_step(const FabArgs& a, void* stream) {
  if (a.batch == 0 || a.n == 0) return cudaSuccess;
  // Places and counts are ints.
  if (a.n > kMostPlaces) return cudaErrorInvalidValue;
  return a.x_type == kF64 ? device::fab_launch_any<double>(a, stream)
                          : device::fab_launch_any<float>(a, stream);
}

}  // namespace fastard
