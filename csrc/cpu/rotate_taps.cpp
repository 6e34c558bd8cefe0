// Changes the basis of the nine taps of many 3x3 kernels: the product of a tall matrix with a 9 x 9 matrix, a shape for
// which general matrix products are slow.
#include "kernels.h"

namespace andfast::cpu {
namespace {

ANDFAST_CLONES void rotate_row(const float* from, const float* basis, float* to, int64_t kernels) {
  for (int64_t k = 0; k < kernels; ++k, from += 9, to += 9) {
    float sums[9] = {};
    for (int i = 0; i < 9; ++i) {
#pragma omp simd
      for (int j = 0; j < 9; ++j) sums[j] += from[i] * basis[9 * i + j];
    }
    for (int j = 0; j < 9; ++j) to[j] = sums[j];
  }
}

}  // namespace

void rotate_taps(const float* from, int64_t from_row, const float* basis, float* to, int64_t rows, int64_t kernels,
                 ParallelFor parallel_for) {
  constexpr int64_t kChunk = 4096;  // kernels
  const int64_t chunks = (kernels + kChunk - 1) / kChunk;
  parallel_for(rows * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % chunks * kChunk;
      rotate_row(from + i / chunks * from_row + 9 * first, basis, to + 9 * (i / chunks * kernels + first),
                 kernels - first < kChunk ? kernels - first : kChunk);
    }
  });
}

}  // namespace andfast::cpu
