// The generators' convolutions where nothing but the result is wanted, in float32: by Winograd's F(6 x 6, 3 x 3), 64
// products for 36 results instead of 324, with the points 0, 1, -1, 2, -2, 1/2 and -1/2 (Lavin and Gray, 2016).
// Training takes F(2 x 2, 3 x 3) (winograd.h), which needs more products and rounds ten times finer.
// andfast/ops/large_tiles.py says what the operators compute.
#include "product.h"
#include "tiles.h"

namespace andfast::cpu {
namespace {

constexpr int64_t kSide = 6, kReach = kSide + 2;  // results and pixels of a tile, along a side
constexpr int64_t kLargeElements = kReach * kReach;
// Tiles, and channels that are read, that are worked on together: so few that, transformed, they share a second-level
// cache of half a megabyte with their products; whole register tiles of rows (product.cpp).
constexpr int64_t kLargeTiles = 12, kDepth = 64;

typedef float Float4 __attribute__((vector_size(16)));
typedef float Float8 __attribute__((vector_size(32)));
typedef float Float16 __attribute__((vector_size(64)));

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

// B^T d.
template <typename Vector>
ANDFAST_BODY void transform_line(const Vector d[8], Vector to[8]) {
  to[0] = (d[0] - d[6]) + 5.25f * (d[4] - d[2]);
  to[7] = (d[7] - d[1]) + 5.25f * (d[3] - d[5]);
  const Vector even1 = d[2] + d[6] - 4.25f * d[4], odd1 = d[1] + d[5] - 4.25f * d[3];
  to[1] = even1 + odd1, to[2] = even1 - odd1;
  const Vector even2 = d[6] + 0.25f * d[2] - 1.25f * d[4], odd2 = 0.5f * d[1] - 2.5f * d[3] + 2.0f * d[5];
  to[3] = even2 + odd2, to[4] = even2 - odd2;
  const Vector even3 = d[6] + 4.0f * d[2] - 5.0f * d[4], odd3 = 2.0f * d[1] - 2.5f * d[3] + 0.5f * d[5];
  to[5] = even3 + odd3, to[6] = even3 - odd3;
}

// A^T m.
template <typename Vector>
ANDFAST_BODY void finish_line(const Vector m[8], Vector to[6]) {
  const Vector even1 = m[1] + m[2], odd1 = m[1] - m[2];
  const Vector even2 = m[3] + m[4], odd2 = m[3] - m[4];
  const Vector even3 = m[5] + m[6], odd3 = m[5] - m[6];
  to[0] = m[0] + even1 + even2 + even3;
  to[1] = odd1 + 2.0f * odd2 + 0.5f * odd3;
  to[2] = even1 + 4.0f * even2 + 0.25f * even3;
  to[3] = odd1 + 8.0f * odd2 + 0.125f * odd3;
  to[4] = even1 + 16.0f * even2 + 0.0625f * even3;
  to[5] = odd1 + 32.0f * odd2 + 0.03125f * odd3 + m[7];
}

// G w.
template <typename Vector>
ANDFAST_BODY void transform_taps(const Vector w[3], Vector to[8]) {
  const Vector even1 = -2.0f / 9 * (w[0] + w[2]), odd1 = -2.0f / 9 * w[1];
  const Vector even2 = 1.0f / 90 * w[0] + 4.0f / 90 * w[2], odd2 = 2.0f / 90 * w[1];
  const Vector even3 = 32.0f / 45 * w[0] + 8.0f / 45 * w[2], odd3 = 16.0f / 45 * w[1];
  to[0] = w[0], to[7] = w[2];
  to[1] = even1 + odd1, to[2] = even1 - odd1;
  to[3] = even2 + odd2, to[4] = even2 - odd2;
  to[5] = even3 + odd3, to[6] = even3 - odd3;
}

// A vector of channels of a tile: B^T d B.
template <typename Vector>
ANDFAST_BODY void enter_vector(const float* const from[kLargeElements], int64_t c, float* v, int64_t step) {
  Vector columns[8][8];  // [column][row]
#pragma GCC unroll 1
  for (int j = 0; j < 8; ++j) {
    Vector d[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) d[i] = load_vector<Vector>(from[8 * i + j] + c);
    transform_line(d, columns[j]);
  }
#pragma GCC unroll 1
  for (int i = 0; i < 8; ++i) {
    Vector d[8], to[8];
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) d[j] = columns[j][i];
    transform_line(d, to);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) store_vector(v + (8 * i + j) * step + c, to[j]);
  }
}

template <typename Vector>
ANDFAST_BODY void enter_body(const float* const from[kLargeElements], int64_t channels, float* v, int64_t step) {
  constexpr int64_t lanes = sizeof(Vector) / sizeof(float);
  int64_t c = 0;
  for (; c + lanes <= channels; c += lanes) enter_vector<Vector>(from, c, v, step);
  for (; c < channels; ++c) enter_vector<float>(from, c, v, step);
}

// What becomes of results: LeakyReLU(z + bias) where there is a slope, else residual + gain (z + bias) where there is a
// residual.
struct LargeTail {
  const float* bias;
  const float* slope;
  float gain;
};

// A vector of channels of a tile's results, A^T m A, to the pixels that exist. `residual`: what is added to, or null.
template <typename Vector>
ANDFAST_BODY void leave_vector(const float* m, int64_t step, int64_t c, float* const to[kSide * kSide],
                               const float* const* residual, const LargeTail& tail) {
  Vector columns[8][6];  // [column][row]
#pragma GCC unroll 1
  for (int j = 0; j < 8; ++j) {
    Vector line[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) line[i] = load_vector<Vector>(m + (8 * i + j) * step + c);
    finish_line(line, columns[j]);
  }
  const Vector bias = load_vector<Vector>(tail.bias + c);
#pragma GCC unroll 1
  for (int i = 0; i < 6; ++i) {
    Vector line[8], z[6];
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) line[j] = columns[j][i];
    finish_line(line, z);
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) {
      float* pixel = to[kSide * i + j];
      if (!pixel) continue;
      Vector value = z[j] + bias;
      if (tail.slope) {
        const Vector sloped = value * load_vector<Vector>(tail.slope + c);
        value = value > 0 ? value : sloped;
      } else if (residual) {
        value = load_vector<Vector>(residual[kSide * i + j] + c) + tail.gain * value;
      }
      store_vector(pixel + c, value);
    }
  }
}

template <typename Vector>
ANDFAST_BODY void leave_body(const float* m, int64_t step, int64_t channels, float* const to[kSide * kSide],
                             const float* const* residual, const LargeTail& tail) {
  constexpr int64_t lanes = sizeof(Vector) / sizeof(float);
  int64_t c = 0;
  for (; c + lanes <= channels; c += lanes) leave_vector<Vector>(m, step, c, to, residual, tail);
  for (; c < channels; ++c) leave_vector<float>(m, step, c, to, residual, tail);
}

using Enter = void (*)(const float* const*, int64_t, float*, int64_t);
using Leave = void (*)(const float*, int64_t, int64_t, float* const*, const float* const*, const LargeTail&);
struct Transforms {
  Enter enter;
  Leave leave;
};

#define ANDFAST_TRANSFORMS(name, target, Vector)                                                                       \
  target void enter_##name(const float* const* from, int64_t channels, float* v, int64_t step) {                       \
    enter_body<Vector>(from, channels, v, step);                                                                       \
  }                                                                                                                    \
  target void leave_##name(const float* m, int64_t step, int64_t channels, float* const* to,                           \
                           const float* const* residual, const LargeTail& tail) {                                      \
    leave_body<Vector>(m, step, channels, to, residual, tail);                                                         \
  }
ANDFAST_TRANSFORMS(baseline, , Float4)
#if defined(__x86_64__)
ANDFAST_TRANSFORMS(avx2, __attribute__((target("avx2,fma"))), Float8)
ANDFAST_TRANSFORMS(avx512, __attribute__((target("avx512f,fma"))), Float16)
#endif

Transforms fastest_transforms() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return {enter_avx512, leave_avx512};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {enter_avx2, leave_avx2};
#endif
  return {enter_baseline, leave_baseline};
}

// The transformed weights: for each element and lane of outputs (inputs, kLane), zeros where padded.
std::unique_ptr<float[]> large_weights(const Weights& weights, int64_t inputs, int64_t outputs,
                                       ParallelFor parallel_for) {
  static_assert(sizeof(Float16) == kLane * sizeof(float));
  const int64_t lanes = round_up(outputs, kLane) / kLane;
  std::unique_ptr<float[]> u(new float[kLargeElements * inputs * lanes * kLane]);
  parallel_for(lanes * inputs, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t lane = i / inputs, c = i % inputs, count = std::min(kLane, outputs - lane * kLane);
      const float* taps = weights.taps + lane * kLane * weights.steps.output_step + c * weights.steps.input_step;
      Float16 columns[3][kReach], to[kReach];
      for (int j = 0; j < 3; ++j) {
        Float16 line[3] = {};
        for (int k = 0; k < 3; ++k) {
          for (int64_t o = 0; o < count; ++o) {
            line[k][o] = taps[o * weights.steps.output_step + (3 * k + j) * weights.steps.tap_step];
          }
        }
        transform_taps(line, columns[j]);
      }
      for (int64_t k = 0; k < kReach; ++k) {
        const Float16 line[3] = {columns[0][k], columns[1][k], columns[2][k]};
        transform_taps(line, to);
        for (int64_t j = 0; j < kReach; ++j) {
          store_vector(u.get() + (((kReach * k + j) * lanes + lane) * inputs + c) * kLane, to[j]);
        }
      }
    }
  });
  return u;
}

// A 3x3 convolution with zeros around the image. It reads the channels of all `sources`, side by side.
void large_convolve(const std::vector<Channels>& sources, const Weights& weights, int64_t images, int64_t height,
                    int64_t width, Results results, const Channels* residual, LargeTail tail,
                    ParallelFor parallel_for) {
  static const Product product = fastest_product();
  static const Transforms transforms = fastest_transforms();
  int64_t inputs = 0;
  for (const Channels& source : sources) inputs += source.count;
  const int64_t padded = round_up(results.channels, kLane);
  const std::unique_ptr<float[]> u = large_weights(weights, inputs, results.channels, parallel_for);
  const int64_t down = (height + kSide - 1) / kSide, across = (width + kSide - 1) / kSide;
  const int64_t count = images * down * across;
  const int64_t v_step = element_step(kLargeTiles, kDepth), m_step = element_step(kLargeTiles, padded);
  const std::vector<float> zeros(kDepth);

  parallel_for((count + kLargeTiles - 1) / kLargeTiles, 1, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<float[]> v(new float[kLargeElements * v_step]()), m(new float[kLargeElements * m_step]);
    const float *from[kLargeElements], *added[kSide * kSide];
    float* to[kSide * kSide];
    for (int64_t group = begin; group < end; ++group) {
      const int64_t first = group * kLargeTiles, tiles = std::min(kLargeTiles, count - first);
      int64_t known = 0;  // inputs whose products are in m
      for (const Channels& source : sources) {
        for (int64_t c = 0; c < source.count; c += kDepth) {
          const Channels part = {source.pixels + c, source.step, std::min(kDepth, source.count - c)};
          for (int64_t t = 0; t < tiles; ++t) {
            const int64_t row = (first + t) / across;
            const int64_t top = row % down * kSide - 1, left = (first + t) % across * kSide - 1;
            const Plane plane = part.plane(row / down, height, width, zeros.data());
            for (int64_t i = 0; i < kReach; ++i) {
              for (int64_t j = 0; j < kReach; ++j) from[kReach * i + j] = plane.at(top + i, left + j);
            }
            transforms.enter(from, part.count, v.get() + t * part.count, v_step);
          }
          for (int64_t e = 0; e < kLargeElements; ++e) {
            for (int64_t lane = 0; lane < padded; lane += kLane) {
              product(v.get() + e * v_step, part.count, 1, u.get() + ((e * padded + lane) * inputs + known * kLane),
                      kLane, m.get() + e * m_step + lane, padded, round_up(tiles, 2), kLane, part.count, known > 0);
            }
          }
          known += part.count;
        }
      }
      for (int64_t t = 0; t < tiles; ++t) {
        const int64_t row = (first + t) / across, image = row / down;
        const int64_t top = row % down * kSide, left = (first + t) % across * kSide;
        for (int64_t i = 0; i < kSide; ++i) {
          for (int64_t j = 0; j < kSide; ++j) {
            const bool exists = top + i < height && left + j < width;
            const int64_t index = (image * height + top + i) * width + left + j;
            to[kSide * i + j] = exists ? results.images + index * results.step : nullptr;
            if (residual) added[kSide * i + j] = residual->pixels + index * residual->step;
          }
        }
        transforms.leave(m.get() + t * padded, m_step, results.channels, to, residual ? added : nullptr, tail);
      }
    }
  });
}

}  // namespace

void large_conv(const float* x, const Weights& weights, const float* bias, const float* slope, float* y,
                ConvShape shape, ParallelFor parallel_for) {
  large_convolve({{x, shape.inputs, shape.inputs}}, weights, shape.images, shape.height, shape.width,
                 {y, shape.outputs, shape.outputs, 0}, nullptr, {bias, slope, 0}, parallel_for);
}

void large_dense_block(const float* x, const std::vector<Weights>& weights, const std::vector<const float*>& biases,
                       DenseShape shape, DenseFactors factors, float* y, float* grown, ParallelFor parallel_for) {
  const int64_t step = (kDenseConvs - 1) * shape.growth;
  const std::vector<float> slopes(shape.growth, factors.slope);
  const Channels entry = {x, shape.features, shape.features};
  for (int64_t k = 0; k < kDenseConvs; ++k) {
    std::vector<Channels> sources = {entry};
    if (k > 0) sources.push_back({grown, step, k * shape.growth});
    const bool last = k == kDenseConvs - 1;
    const Results results = last ? Results{y, shape.features, shape.features, 0}
                                 : Results{grown + k * shape.growth, step, shape.growth, 0};
    large_convolve(sources, weights[k], shape.images, shape.height, shape.width, results, last ? &entry : nullptr,
                   {biases[k], last ? nullptr : slopes.data(), factors.gain}, parallel_for);
  }
}

}  // namespace andfast::cpu
