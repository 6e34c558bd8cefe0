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

// The outputs of the pooling that read position p, in one direction: `first` and the one after it, each with its
// weight, taps that reflect onto p included. A weight of 0: no such output, whose index may lie outside.
struct Readers {
  int first;
  float weight[2];
};
ANDFAST_INLINE Readers readers(int p, int size, int scale) {
  const int outputs = size / scale;
  Readers found = {(p + scale - 1) / scale - 1, {0, 0}};
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const int j = found.first + k;
    const int tap = p + 1 - scale * j;
    if (j < 0 || j >= outputs || tap < 0) continue;
    float weight = pooling_tap(tap, scale);
    if (j == 0 && p == 1) weight += pooling_tap(0, scale);
    if (j == outputs - 1 && p == size - 2) weight += pooling_tap(scale + 1, scale);
    found.weight[k] = weight;
  }
  return found;
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
