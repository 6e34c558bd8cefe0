// Eight neighbouring channels of a pixel: what a thread works on, and what a byte of signs stands for.
#pragma once

#include "launch.cuh"
#include "index.h"

namespace andfast::cuda {

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ __forceinline__ void from_float(float value, float& to) { to = value; }
__device__ __forceinline__ void from_float(float value, __half& to) { to = __float2half_rn(value); }
__device__ __forceinline__ void from_float(float value, __nv_bfloat16& to) { to = __float2bfloat16_rn(value); }

template <typename T>
struct alignas(16) Octet {
  T values[8];

  __device__ __forceinline__ float operator[](int i) const { return to_float(values[i]); }
};

// `left` is how many channels there are from this one on. kFull: eight or more, and 16-byte aligned. What is loaded
// is never written by the same kernel, and __ldg says so: the compiler may then move loads ahead of stores.
template <bool kFull, typename T>
__device__ __forceinline__ Octet<T> load(const T* from, int left) {
  Octet<T> octet;
  if constexpr (kFull) {
#pragma unroll
    for (int i = 0; i < int(sizeof(Octet<T>) / sizeof(uint4)); ++i) {
      reinterpret_cast<uint4*>(&octet)[i] = __ldg(reinterpret_cast<const uint4*>(from) + i);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      octet.values[i] = T{};
      if (i < left) octet.values[i] = __ldg(from + i);
    }
  }
  return octet;
}

template <typename T>
__device__ __forceinline__ Octet<T> rounded(const float* values) {
  Octet<T> octet;
#pragma unroll
  for (int i = 0; i < 8; ++i) from_float(values[i], octet.values[i]);
  return octet;
}

template <bool kFull, typename T>
__device__ __forceinline__ void store(T* to, const Octet<T>& octet, int left) {
  if constexpr (kFull) {
#pragma unroll
    for (int i = 0; i < int(sizeof(Octet<T>) / sizeof(uint4)); ++i) {
      reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(&octet)[i];
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i < left) to[i] = octet.values[i];
    }
  }
}

// A block of threads: x counts a pixel's octets, y pixels.
inline int octets(int channels) { return ceil_div(channels, 8); }
inline dim3 octet_block(int channels) {
  const int x = octets(channels);
  return dim3(x, kThreads / x);
}

inline bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Calls function(Bool<full>()): whether every octet is full, and can be accessed 16 bytes at a time.
template <bool kValue>
struct Bool {
  static constexpr bool value = kValue;
};
template <typename Function, typename... Pointers>
void dispatch_full(int channels, const Function& function, Pointers... pointers) {
  if (channels % 8 == 0 && (aligned(pointers) && ...)) {
    function(Bool<true>());
  } else {
    function(Bool<false>());
  }
}

}  // namespace andfast::cuda
