// Index arithmetic of the CUDA kernels, in functions that the tests can call on the host.
#pragma once

#include "../math.h"

namespace andfast::cuda {

ANDFAST_INLINE int ceil_div(int64_t a, int64_t b) { return int((a + b - 1) / b); }

// The positions in a bordered image that hold copies of position p, from `first` to `last`: forwards, a value is
// written to all of them, and backwards their gradients are added up.
struct Copies {
  int first, last;
};
ANDFAST_INLINE Copies copies(int p, int size, int border) {
  return {p == 0 ? 0 : p + border, p == size - 1 ? p + 2 * border : p + border};
}

// Replaces a symmetric positive definite matrix, (size, size), by its inverse: Gauss and Jordan's elimination, which
// needs no pivoting there.
ANDFAST_INLINE void invert(double* matrix, int size) {
  for (int pivot = 0; pivot < size; ++pivot) {
    double* const pivot_row = matrix + pivot * size;
    const double scale = 1.0 / pivot_row[pivot];
    pivot_row[pivot] = 1;
    for (int j = 0; j < size; ++j) pivot_row[j] *= scale;
    for (int i = 0; i < size; ++i) {
      if (i == pivot) continue;
      double* const row = matrix + i * size;
      const double factor = row[pivot];
      row[pivot] = 0;
      for (int j = 0; j < size; ++j) row[j] -= factor * pivot_row[j];
    }
  }
}

}  // namespace andfast::cuda
