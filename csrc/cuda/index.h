// Index arithmetic of the CUDA kernels, in functions that the tests can call on the host.
#pragma once

#include "../math.h"

namespace andfast::cuda {

ANDFAST_INLINE int ceil_div(int64_t a, int64_t b) { return int((a + b - 1) / b); }

// The positions in a bordered image that hold copies of position p, from `first` to `last`: the forward pass writes a
// value to all of them, the backward pass sums their gradients.
struct Copies {
  int first, last;
};
ANDFAST_INLINE Copies copies(int p, int size, int border) {
  return {p == 0 ? 0 : p + border, p == size - 1 ? p + 2 * border : p + border};
}

}  // namespace andfast::cuda
