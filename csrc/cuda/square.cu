// Square Attack's step, a block a row. Linf touches two windows' pixels: some 24 bytes a pixel of
// the window judged and 12 of the one proposed. L2 and L1 read a row three or four times, of which
// all but the first from the cache, and write it once or, where the proposal is taken, twice.
// Expected: latency, a few microseconds a launch for some hundred rows of 3x32x32.
#include "../square.h"

#include "images.cuh"
#include "team.cuh"

// After FA_ISA is defined.
#include "../square_math.h"

namespace fastard {
namespace device {

constexpr int kSquareThreads = 256;

// Whether the row takes its last proposal, and whether it is attacked any further.
struct Verdict {
  bool taken, open;
};

template <class Z> __device__ Verdict judge(const SquareArgs& a, int64_t row, Team& team) {
  Z* margin = static_cast<Z*>(a.margin) + row;
  Z* loss = static_cast<Z*>(a.loss) + row;
  const Z best_margin = *margin, best_loss = *loss;
  if (!(best_margin > Z(0))) return {false, false};
  if (a.judged < 0) return {false, true};
  const Z* z = static_cast<const Z*>(a.logits) + row * a.classes;
  const int64_t y = a.labels[row];
  const bool labelled = y >= 0 && y < a.classes;
  Z other = -Z(INFINITY), sum = 0;
  int broken = labelled ? 0 : 1;
  for (int k = threadIdx.x; k < a.classes; k += blockDim.x) {
    if (k != y) other = Max::of(other, z[k]);
    broken += z[k] != z[k];
  }
  other = team.over<Max>(other);
  broken = team.over<Add>(broken);
  const Z own = labelled ? z[y] : Z(0), top = Max::of(other, own);
  if (a.ce || a.targeted) {
    for (int k = threadIdx.x; k < a.classes; k += blockDim.x) sum += exponential(z[k] - top);
    sum = team.over<Add>(sum);
  }
  const Z now = broken ? Z(NAN) : square_margin(own, other, a.targeted);
  const Z value = square_loss(now, broken ? Z(NAN) : own, top, sum, a.ce, a.targeted);
  const bool lower = value < best_loss, taken = lower || now <= Z(0);
  if (threadIdx.x == 0) {
    if (lower) *loss = value;
    if (taken) *margin = now;
    a.queries[row] += 1;
  }
  return {taken, taken ? now > Z(0) : true};
}
__device__ __forceinline__ Verdict judge(const SquareArgs& a, int64_t row, Team& team) {
  return a.logits_type == kF64 ? judge<double>(a, row, team) : judge<float>(a, row, team);
}

__device__ __forceinline__ const float* drawn(const SquareArgs& a, int64_t row, int64_t query) {
  return a.draws + ((a.draw_rows == 1 ? 0 : row) * a.draw_queries + query) * a.numbers;
}

struct Window {
  int top, left, side;
  __device__ __forceinline__ Window(const SquareArgs& a, const float* u, int64_t size)
      : top(int(window_offset(u[0], a.height - size))),
        left(int(window_offset(u[1], a.width - size))),
        side(int(size)) {}
  __device__ __forceinline__ bool holds(int i, int j) const {
    return i >= top && i < top + side && j >= left && j < left + side;
  }
};

// f(channel, index in the batch) for each of the block's pixels of a window.
template <class F> __device__ __forceinline__ void each_pixel(const SquareArgs& a, int64_t row,
                                                              const Window& window, F f) {
  const int area = window.side * window.side, n = int(a.channels) * area;
  for (int k = threadIdx.x; k < n; k += blockDim.x) {
    const int c = k / area, at = k - c * area, i = at / window.side, j = at - i * window.side;
    f(c, ((row * a.channels + c) * a.height + window.top + i) * a.width + window.left + j);
  }
}

template <class A> __global__ void __launch_bounds__(kSquareThreads, 1)
    square_linf(const __grid_constant__ SquareArgs a) {
  const int64_t row = blockIdx.x;
  Team team(0, 1);
  A* best = static_cast<A*>(a.x_best);
  A* trial = static_cast<A*>(a.trial);
  const A* x = static_cast<const A*>(a.x);
  const A eps = per_sample<A>(a.eps, row), lo = A(a.clip_min), hi = A(a.clip_max);
  const auto moved = [&](const float* u, int c, int64_t at) {
    return linf_step(best[at], drawn_sign<A>(u[kLinfPlaces + c]), x[at], eps, A(2) * eps, lo, hi);
  };
  const auto fed = [&](int c, A v) {
    return a.mean ? normalised(v, A(a.mean[c]), A(a.std[c])) : v;
  };
  const Verdict verdict = judge(a, row, team);
  if (a.judged >= 0) {
    // A row that was solved before has no proposal to put back: its trial is its best.
    const float* u = drawn(a, row, a.judged);
    each_pixel(a, row, Window(a, u, a.judged_side), [&](int c, int64_t at) {
      if (verdict.taken)
        best[at] = moved(u, c, at);
      else
        trial[at] = fed(c, best[at]);
    });
    __syncthreads();
  }
  if (a.proposed < 0 || !verdict.open) return;
  const float* u = drawn(a, row, a.proposed);
  each_pixel(a, row, Window(a, u, a.proposed_side),
             [&](int c, int64_t at) { trial[at] = fed(c, moved(u, c, at)); });
}

// A row of displacements of which the second window's mass moves into the first; what a channel
// needs lies in shared memory.
template <class A> struct Moved {
  const SquareArgs& a;
  const A *best, *x;  // the row's
  const float* u;
  Window first, second;
  bool flip, l2;
  A *scale, *norm, *size;

  __device__ __forceinline__ Moved(const SquareArgs& args, int64_t row, A* shared)
      : a(args),
        best(static_cast<const A*>(args.x_best) + row * args.channels * args.height * args.width),
        x(static_cast<const A*>(args.x) + row * args.channels * args.height * args.width),
        u(drawn(args, row, args.proposed)),
        first(args, u, args.proposed_side),
        second(args, u + 2, args.proposed_side),
        flip(u[4] > 0.5f),
        l2(args.norm == kL2),
        scale(shared),
        norm(shared + args.channels),
        size(shared + 2 * args.channels) {}

  __device__ __forceinline__ A before(int64_t at) const { return best[at] - x[at]; }
  __device__ __forceinline__ A fresh(int c, int i, int j, A delta) const {
    const int row = i - first.top, column = j - first.left;
    const int place = flip ? column * first.side + row : row * first.side + column;
    return A(a.pyramid[place]) * drawn_sign<A>(u[kPairPlaces + c]) + delta / scale[c];
  }
  __device__ __forceinline__ A after(int c, int i, int j, A delta) const {
    if (first.holds(i, j)) return fresh(c, i, j, delta) / norm[c] * size[c];
    return second.holds(i, j) ? A(0) : delta;
  }
  // f(row, column, place in the sample) for the block's pixels of a channel.
  template <class F> __device__ __forceinline__ void each(int c, F f) const {
    const int width = int(a.width), plane = int(a.height) * width;
    for (int p = threadIdx.x; p < plane; p += blockDim.x) {
      const int i = p / width;
      f(i, p - i * width, int64_t(c) * plane + p);
    }
  }

  __device__ void measure_windows(A eps, Team& team) {
    double image = 0;
    for (int c = 0; c < a.channels; ++c) {
      A own = 0, both = 0, all = 0;
      each(c, [&](int i, int j, int64_t at) {
        const A value = power(before(at), l2);
        const bool inside = first.holds(i, j);
        all += value;
        own += inside ? value : A(0);
        both += inside || second.holds(i, j) ? value : A(0);
      });
      double sums[3] = {double(own), double(both), double(all)};
      team.over<Add>(sums);
      image += sums[2];
      if (threadIdx.x == 0) {
        scale[c] = A(1e-12) + measure(A(sums[0]), l2);
        size[c] = measure(A(sums[1]), l2);
      }
    }
    __syncthreads();
    const A whole = measure(A(image), l2);
    for (int c = 0; c < a.channels; ++c) {
      A mine = 0;
      const int area = first.side * first.side;
      for (int k = threadIdx.x; k < area; k += blockDim.x) {
        const int i = first.top + k / first.side, j = first.left + k % first.side;
        mine += power(fresh(c, i, j, before((c * a.height + i) * a.width + j)), l2);
      }
      const double total = team.over<Add>(double(mine));
      if (threadIdx.x == 0) {
        norm[c] = A(1e-12) + measure(A(total), l2);
        size[c] = window_size(eps, whole, size[c], A(a.channels), l2);
      }
    }
    __syncthreads();
  }
};

template <class A> __global__ void __launch_bounds__(kSquareThreads)
    square_pair(const __grid_constant__ SquareArgs a) {
  extern __shared__ double pool[];
  const int64_t row = blockIdx.x, n = a.channels * a.height * a.width;
  Team team(0, 1);
  A* best = static_cast<A*>(a.x_best) + row * n;
  A* trial = static_cast<A*>(a.trial) + row * n;
  const Verdict verdict = judge(a, row, team);
  if (verdict.taken) {
    for (int64_t k = threadIdx.x; k < n; k += blockDim.x) best[k] = trial[k];
    __syncthreads();
  }
  const bool l2 = a.norm == kL2;
  if (a.proposed < 0 || (l2 && !verdict.open)) return;
  Moved<A> moved(a, row, reinterpret_cast<A*>(pool));
  if (!verdict.open) {
    // L1's trial is projected for all rows alike, those that stay included.
    for (int64_t k = threadIdx.x; k < n; k += blockDim.x) trial[k] = moved.before(k);
    return;
  }
  const A eps = per_sample<A>(a.eps, row), lo = A(a.clip_min), hi = A(a.clip_max);
  moved.measure_windows(eps, team);
  A length = 1;
  if (l2) {
    A mine = 0;
    for (int c = 0; c < a.channels; ++c)
      moved.each(c, [&](int i, int j, int64_t at) {
        mine += power(moved.after(c, i, j, moved.before(at)), true);
      });
    length = A(root(team.over<Add>(double(mine)))) + A(1e-12);
  }
  for (int c = 0; c < a.channels; ++c)
    moved.each(c, [&](int i, int j, int64_t at) {
      const A delta = moved.after(c, i, j, moved.before(at));
      trial[at] = l2 ? clamp(moved.x[at] + delta / length * eps, lo, hi) : delta;
    });
}

template <class A> int square_launch(const SquareArgs& a, void* stream) {
  if (a.norm == kLinf) return launch(square_linf<A>, a.rows, kSquareThreads, 0, 1, stream, a);
  const size_t shared = 3 * size_t(a.channels) * sizeof(A);
  return launch(square_pair<A>, a.rows, kSquareThreads, shared, 1, stream, a);
}

}  // namespace device

int cuda_square_step(const SquareArgs& a, void* stream) {
  if (a.rows == 0) return cudaSuccess;
  return a.x_type == kF64 ? device::square_launch<double>(a, stream)
                          : device::square_launch<float>(a, stream);
}

}  // namespace fastard
