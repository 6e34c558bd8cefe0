// Vectors of SSE, AVX and AVX-512, for kernels that are written once and compiled for each.
#pragma once

#include "kernels.h"

namespace andfast::cpu {

// The processor's vectors, for kernels that are chosen when they are called.
#if defined(__x86_64__)
#ifdef ANDFAST_NO_AVX512
inline bool has_avx512() { return false; }
#else
inline bool has_avx512() { return __builtin_cpu_supports("avx512f"); }
#endif
inline bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif

typedef float Float4 __attribute__((vector_size(16)));
typedef float Float8 __attribute__((vector_size(32)));
typedef float Float16 __attribute__((vector_size(64)));

// A vector, or one number, at any address.
template <typename Vector>
ANDFAST_BODY Vector load_vector(const float* from) {
  typedef Vector Unaligned __attribute__((aligned(4), may_alias));
  return *reinterpret_cast<const Unaligned*>(from);
}
template <typename Vector>
ANDFAST_BODY void store_vector(float* to, const Vector& value) {
  typedef Vector Unaligned __attribute__((aligned(4), may_alias));
  *reinterpret_cast<Unaligned*>(to) = value;
}

// The numbers i, j, k, l of a and b, one after the other.
#if defined(__clang__) || __GNUC__ >= 12
#define ANDFAST_SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
typedef int32_t Int4 __attribute__((vector_size(16)));
#define ANDFAST_SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, Int4{i, j, k, l})
#endif

// The transpose of four rows of four numbers.
inline void transpose4(const float* from, int64_t from_row, float* to, int64_t to_row) {
  const Float4 a = load_vector<Float4>(from), b = load_vector<Float4>(from + from_row),
               c = load_vector<Float4>(from + 2 * from_row), d = load_vector<Float4>(from + 3 * from_row);
  const Float4 ab0 = ANDFAST_SHUFFLE(a, b, 0, 4, 1, 5), ab2 = ANDFAST_SHUFFLE(a, b, 2, 6, 3, 7);
  const Float4 cd0 = ANDFAST_SHUFFLE(c, d, 0, 4, 1, 5), cd2 = ANDFAST_SHUFFLE(c, d, 2, 6, 3, 7);
  store_vector(to, ANDFAST_SHUFFLE(ab0, cd0, 0, 1, 4, 5));
  store_vector(to + to_row, ANDFAST_SHUFFLE(ab0, cd0, 2, 3, 6, 7));
  store_vector(to + 2 * to_row, ANDFAST_SHUFFLE(ab2, cd2, 0, 1, 4, 5));
  store_vector(to + 3 * to_row, ANDFAST_SHUFFLE(ab2, cd2, 2, 3, 6, 7));
}

// Prefetches into the second-level cache: the hardware prefetcher cannot follow this many streams.
template <bool kWrite>
void prefetch(const void* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(from) + i, kWrite, 2);
}

}  // namespace andfast::cpu
