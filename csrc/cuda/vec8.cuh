// Eight neighbouring channels of a pixel: the unit of work of a thread, and one byte of the sign mask.
#pragma once

#include "index.h"
#include "launch.cuh"

namespace andfast::cuda {

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ __forceinline__ void from_float(float value, float& to) { to = value; }
__device__ __forceinline__ void from_float(float value, __half& to) { to = __float2half_rn(value); }
__device__ __forceinline__ void from_float(float value, __nv_bfloat16& to) { to = __float2bfloat16_rn(value); }

template <typename T>
struct alignas(16) Vec8 {
  T values[8];

  __device__ __forceinline__ float operator[](int i) const { return to_float(values[i]); }
};

// `left` is the number of channels from this one on. kFull: at least eight, and 16-byte aligned. A kernel never writes
// what it loads; __ldg says so, which lets the compiler move loads ahead of stores.
template <bool kFull, typename T>
__device__ __forceinline__ Vec8<T> load(const T* from, int left) {
  Vec8<T> vec;
  if constexpr (kFull) {
#pragma unroll
    for (int i = 0; i < int(sizeof(Vec8<T>) / sizeof(uint4)); ++i) {
      reinterpret_cast<uint4*>(&vec)[i] = __ldg(reinterpret_cast<const uint4*>(from) + i);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      vec.values[i] = T{};
      if (i < left) vec.values[i] = __ldg(from + i);
    }
  }
  return vec;
}

template <typename T>
__device__ __forceinline__ Vec8<T> rounded(const float* values) {
  Vec8<T> vec;
#pragma unroll
  for (int i = 0; i < 8; ++i) from_float(values[i], vec.values[i]);
  return vec;
}

template <bool kFull, typename T>
__device__ __forceinline__ void store(T* to, const Vec8<T>& vec, int left) {
  if constexpr (kFull) {
#pragma unroll
    for (int i = 0; i < int(sizeof(Vec8<T>) / sizeof(uint4)); ++i) {
      reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(&vec)[i];
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i < left) to[i] = vec.values[i];
    }
  }
}

// Thread blocks: x counts the Vec8s of a pixel, y pixels.
inline int vec8_count(int channels) { return ceil_div(channels, 8); }
inline dim3 vec8_block(int channels) {
  const int x = vec8_count(channels);
  return dim3(x, kThreads / x);
}

inline bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Calls function(Bool<full>()): whether every Vec8 is full and can be accessed 16 bytes at a time.
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
