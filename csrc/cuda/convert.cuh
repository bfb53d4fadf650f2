// Element types on the device: conversion, 16-byte groups, choice of a type at run time.
#pragma once
#define FA_ISA device
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <string.h>

#include <type_traits>

#include "../kernels.h"
#include "../math.h"

namespace fastard {
namespace device {

using F16 = __half;
using BF16 = __nv_bfloat16;

template <class T> using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ double widen(double v) { return v; }
__device__ __forceinline__ float widen(F16 v) { return __half2float(v); }
__device__ __forceinline__ float widen(BF16 v) { return __bfloat162float(v); }

template <class T, class A> __device__ __forceinline__ T narrow(A v) {
  if constexpr (std::is_same_v<T, F16>)
    return __float2half_rn(float(v));
  else if constexpr (std::is_same_v<T, BF16>)
    return __float2bfloat16_rn(float(v));
  else
    return T(v);
}

__device__ __forceinline__ unsigned short bits_of(F16 v) { return __half_as_ushort(v); }
__device__ __forceinline__ unsigned short bits_of(BF16 v) { return __bfloat16_as_ushort(v); }
template <class T> __device__ __forceinline__ T half_of(unsigned short bits) {
  if constexpr (std::is_same_v<T, F16>)
    return __ushort_as_half(bits);
  else
    return __ushort_as_bfloat16(bits);
}

// v in T; a half precision is rounded between v and x, so whatever ball or box held v holds it.
template <class T, class A> __device__ __forceinline__ T narrow_towards(A v, A x) {
  const T nearest = narrow<T>(v);
  if constexpr (sizeof(T) > 2) {
    return nearest;
  } else {
    const float r = widen(nearest);
    const bool overshot = magnitude(r - x) > magnitude(v - x);
    const unsigned short bits = bits_of(nearest), from_zero = x > A(0) ? 0x0001u : 0x8001u;
    const unsigned short back = (r > x) == (r > 0.0f) ? bits - 1 : bits + 1;
    return overshot ? half_of<T>(r == 0.0f ? from_zero : back) : nearest;
  }
}

// V elements that move in accesses of 16 bytes, or in one smaller.
template <int BYTES> struct WordOf {
  using type = uint4;
};
template <> struct WordOf<8> {
  using type = uint2;
};
template <> struct WordOf<4> {
  using type = uint32_t;
};
template <> struct WordOf<2> {
  using type = uint16_t;
};
template <class T, int V> struct Pack {
  using Word = typename WordOf<V * sizeof(T)>::type;
  static constexpr int kWords = V * sizeof(T) / sizeof(Word);
  alignas(Word) T v[V];
};
// Through words, because a compiler may split the copy of a struct.
template <class T, int V>
__device__ __forceinline__ Pack<T, V> fetch(const void* data, int64_t index) {
  using P = Pack<T, V>;
  const auto* from = reinterpret_cast<const typename P::Word*>(static_cast<const T*>(data) + index);
  typename P::Word words[P::kWords];
#pragma unroll
  for (int i = 0; i < P::kWords; ++i) words[i] = from[i];
  P pack;
  memcpy(&pack, words, sizeof(pack));
  return pack;
}
template <class T, int V>
__device__ __forceinline__ void put(void* data, int64_t index, const Pack<T, V>& pack) {
  using P = Pack<T, V>;
  auto* to = reinterpret_cast<typename P::Word*>(static_cast<T*>(data) + index);
  typename P::Word words[P::kWords];
  memcpy(words, &pack, sizeof(pack));
#pragma unroll
  for (int i = 0; i < P::kWords; ++i) to[i] = words[i];
}

// f(T()) for the type that a code names. The branch is uniform; keep whole loops inside f.
template <class F> __device__ __forceinline__ void with_type(int type, F f) {
  if (type == kF32)
    f(float());
  else if (type == kBF16)
    f(BF16());
  else if (type == kF16)
    f(F16());
  else
    f(double());
}

// The same for what computes in A: fp64 does so and no other type.
template <class A, class F> __device__ __forceinline__ void with_own_type(int type, F f) {
  if constexpr (std::is_same_v<A, double>)
    f(double());
  else if (type == kF32)
    f(float());
  else if (type == kBF16)
    f(BF16());
  else
    f(F16());
}

// A type that is known at run time only: read one by one.
struct Any {};
template <class A>
__device__ __forceinline__ A load_any(const void* data, int type, int64_t index) {
  A value = 0;
  with_type(type,
            [&](auto tag) { value = A(widen(static_cast<const decltype(tag)*>(data)[index])); });
  return value;
}

// V elements in flight: kept as they lie in memory until they are used, so that the loads of
// several groups overlap.
template <class A, class T, int V> struct Group {
  Pack<T, V> raw;
  __device__ __forceinline__ void load(const void* data, int, int64_t index) {
    raw = fetch<T, V>(data, index);
  }
  __device__ __forceinline__ A operator[](int j) const { return A(widen(raw.v[j])); }
};
template <class A> struct Group<A, Any, 1> {
  A value;
  __device__ __forceinline__ void load(const void* data, int type, int64_t index) {
    value = load_any<A>(data, type, index);
  }
  __device__ __forceinline__ A operator[](int) const { return value; }
};

}  // namespace device
}  // namespace fastard
