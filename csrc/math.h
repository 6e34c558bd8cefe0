// Per-element mathematics, written once for the CPU and for CUDA, without torch.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define ANDFAST_INLINE __host__ __device__ __forceinline__
#else
#define ANDFAST_INLINE inline
#endif

namespace andfast {

// The adversary's projected step on one row: delta d, gradient g, inverse scale factors r (0: the coordinate is fixed
// at 0). Three sums over the row decide the whole step, so a first pass over d and g computes them and a second one
// writes the result. Doubles hold the square of any float32 product or quotient: nothing over- or underflows.
struct StepSums {
  double grad = 0;   // sum of (r g)^2
  double delta = 0;  // sum of (d / r)^2 over r > 0
  double dot = 0;    // sum of d g       over r > 0, which is <d / r, r g>
};

// Adds one element. The quotient and products are computed for r = 0, too, and then discarded: a select can be
// vectorised, a branch cannot.
ANDFAST_INLINE void add_element(double d, double g, double r, double& grad, double& delta, double& dot) {
  const double scaled_grad = r * g;
  const double scaled_delta = d / r;
  const double product = d * g;
  grad += scaled_grad * scaled_grad;  // counted at r = 0 too, where a NaN must still spoil the row's gradient
  delta += r > 0 ? scaled_delta * scaled_delta : 0.0;
  dot += r > 0 ? product : 0.0;
}

// One element of (d + rate r^2 g) shrink. At a rate of 0, g is ignored even if it is NaN.
ANDFAST_INLINE float step_element(double d, double g, double r, double rate, double shrink) {
  const double move = rate * r * r * g;
  const double moved = d + (rate > 0 ? move : 0.0);
  const double result = moved * shrink;
  return static_cast<float>(r > 0 ? result : 0.0);
}

// A block's epilogue on one element: LeakyReLU, then noise. `slope_minus_one` is the negative slope minus one (see
// andfast/ops/degradation_block.py); z is the result of the convolution.
ANDFAST_INLINE float block_epilogue(float z, float slope_minus_one, float noise) {
  return z + slope_minus_one * (z < 0 ? z : 0.0f) + noise;
}

// Its derivative with respect to z. Only the sign of z is saved for the backward pass.
ANDFAST_INLINE float block_epilogue_slope(bool negative, float slope_minus_one) {
  return negative ? 1.0f + slope_minus_one : 1.0f;
}

// The slope that backward passes divide by when they recover a negative z from the block's output, (y - noise) / slope,
// instead of storing it (Rota Bulo et al., "In-place activated BatchNorm", 2018). It is kept away from zero, where
// nothing could be recovered: nearer to it the gradient of the slope itself shrinks, and is zero for a slope of zero.
// Half types lose digits of a single z long before that, but these errors are random and average out in the sum over
// all pixels.
constexpr float kLeastSlope = 1.0f / 1024;
ANDFAST_INLINE float inverse_slope(float slope_minus_one) {
  const float slope = 1.0f + slope_minus_one;
  const float size = slope < 0 ? -slope : slope;
  return size < kLeastSlope ? (slope < 0 ? -1.0f : 1.0f) / kLeastSlope : 1.0f / slope;
}

// Tap i (0 <= i < scale + 2) of the anti-aliased pooling in one direction: a box of `scale` convolved with [1, 2, 1] /
// 4. For pixel j of the output, tap i multiplies pixel scale * j + i - 1 of the input, reflected at the border.
ANDFAST_INLINE float pooling_tap(int i, int scale) {
  const int weight = (i < scale) + 2 * (i >= 1 && i <= scale) + (i >= 2);
  return weight * (0.25f / scale);
}

// The index of a pixel that lies outside [0, size) by one, reflected (the border pixel itself is not repeated).
ANDFAST_INLINE int64_t reflect(int64_t index, int64_t size) {
  return index < 0 ? -index : index >= size ? 2 * size - 2 - index : index;
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

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): replaces the counter by four
// random words.
ANDFAST_INLINE void philox(uint32_t counter[4], uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t even = uint64_t{0xD2511F53} * counter[0];
    const uint64_t odd = uint64_t{0xCD9E8D57} * counter[2];
    counter[0] = uint32_t(odd >> 32) ^ counter[1] ^ key0;
    counter[2] = uint32_t(even >> 32) ^ counter[3] ^ key1;
    counter[1] = uint32_t(odd);
    counter[3] = uint32_t(even);
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
}

// Box and Muller's transform of two random words into two standard normal values, in float32 to its last digits: from
// u = (word + 0.5) / 2^32 near 1 the logarithm is taken by way of 1 - u, which is exact where u would be rounded.
ANDFAST_INLINE void box_muller(uint32_t first, uint32_t second, float& cosine, float& sine) {
  constexpr float kUnit = 1.0f / 4294967296.0f;
  const bool low = first < 0x80000000u;
  const float near = (float(low ? first : ~first) + 0.5f) * kUnit;  // u, or 1 - u
  const float radius = sqrtf(-2.0f * (low ? logf(near) : log1pf(-near)));
  const float turn = (float(second) + 0.5f) * kUnit;
#ifdef __CUDA_ARCH__
  sincospif(2 * turn, &sine, &cosine);  // unlike sinf, without a slow path for angles far larger than a turn
  sine *= radius;
  cosine *= radius;
#else
  cosine = radius * cosf(6.283185307179586f * turn);
  sine = radius * sinf(6.283185307179586f * turn);
#endif
}

// The Gaussian field of the noise injection (andfast/ops/noise.py): four pixels, in row-major order, share one draw.
ANDFAST_INLINE void gaussian_quad(uint64_t seed, uint32_t layer, uint32_t image, uint32_t quad, float field[4]) {
  uint32_t words[4] = {quad, image, layer, 0};
  philox(words, uint32_t(seed), uint32_t(seed >> 32));
  box_muller(words[0], words[1], field[0], field[1]);
  box_muller(words[2], words[3], field[2], field[3]);
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

// The projected step of a row, (d + rate r^2 g) shrink, determined by the row's sums.
struct StepRule {
  double rate, shrink;
};
ANDFAST_INLINE StepRule step_rule(const StepSums& sums, double step_size, double epsilon) {
  const double grad_norm = std::sqrt(sums.grad);
  const bool moves = grad_norm > 0 && std::isfinite(grad_norm);
  // |d / r + step_size * r g / |r g||^2, multiplied out. This loses digits only where the terms cancel, that is, where
  // the moved row is far shorter than the row was, and then it is well inside the ball.
  double norm_squared = sums.delta;
  if (moves) norm_squared += step_size * (2 * sums.dot / grad_norm + step_size);
  const double norm = std::sqrt(norm_squared < 0 ? 0.0 : norm_squared);
  // Written so that a NaN in delta propagates.
  const double shrink = norm <= epsilon || std::isinf(epsilon) ? 1.0 : epsilon / norm;
  return {moves ? step_size / grad_norm : 0.0, shrink};
}

}  // namespace andfast
