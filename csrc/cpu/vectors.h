// Vectors of SSE, AVX and AVX-512, for kernels that are written once and compiled for each.
#pragma once

#include "kernels.h"

namespace andfast::cpu {

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

}  // namespace andfast::cpu
