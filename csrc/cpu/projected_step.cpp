#include <algorithm>
#include <cmath>
#include <vector>

#include "../math.h"
#include "kernels.h"

namespace andfast::cpu {
namespace {

// Sums are kept per chunk and combined in order, so their rounding is the same for any number of threads.
constexpr int64_t kChunk = 8192;
constexpr int64_t kGrain = 4;  // fewest chunks per thread for which waking it pays

ANDFAST_CLONES StepSums sum_chunk(const float* delta, const float* grad, const float* inv_scale, int64_t count) {
  double grad_sum = 0, delta_sum = 0, dot_sum = 0;
#pragma omp simd reduction(+ : grad_sum, delta_sum, dot_sum)
  for (int64_t i = 0; i < count; ++i) {
    add_element(delta[i], grad[i], inv_scale[i], grad_sum, delta_sum, dot_sum);
  }
  return {grad_sum, delta_sum, dot_sum};
}

ANDFAST_CLONES void step_chunk(const float* delta, const float* grad, const float* inv_scale, float* out, int64_t count,
                               double rate, double shrink) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    out[i] = step_element(delta[i], grad[i], inv_scale[i], rate, shrink);
  }
}

}  // namespace

void projected_step(const float* delta, const float* grad, const float* inv_scale, float* out, int64_t rows,
                    int64_t columns, double step_size, double epsilon, ParallelFor parallel_for) {
  const int64_t chunks = (columns + kChunk - 1) / kChunk;  // a row
  if (rows * chunks == 0) return;

  std::vector<StepSums> sums(rows * chunks);
  parallel_for(rows * chunks, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t column = i % chunks * kChunk;
      const int64_t offset = i / chunks * columns + column;
      sums[i] = sum_chunk(delta + offset, grad + offset, inv_scale + column, std::min(kChunk, columns - column));
    }
  });

  std::vector<StepRule> steps(rows);
  for (int64_t row = 0; row < rows; ++row) {
    StepSums total;
    for (int64_t i = row * chunks; i < (row + 1) * chunks; ++i) {
      total.grad += sums[i].grad;
      total.delta += sums[i].delta;
      total.dot += sums[i].dot;
    }
    steps[row] = step_rule(total, step_size, epsilon);
  }

  parallel_for(rows * chunks, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t column = i % chunks * kChunk;
      const int64_t offset = i / chunks * columns + column;
      const StepRule& step = steps[i / chunks];
      step_chunk(delta + offset, grad + offset, inv_scale + column, out + offset, std::min(kChunk, columns - column),
                 step.rate, step.shrink);
    }
  });
}

}  // namespace andfast::cpu
