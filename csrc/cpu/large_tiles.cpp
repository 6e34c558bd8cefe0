#include "large_tiles.h"

#include <algorithm>

#include "vectors.h"
#include "winograd.h"

namespace andfast::cpu {
namespace {

// Where the pixels of a tile are: pixel (i, j) at rows[i] + columns[j].
struct Window {
  const float* rows[kInputSide];
  int64_t columns[kInputSide];
};

// A vector of channels of a tile: B^T d B.
template <typename Vector>
ANDFAST_BODY void input_vector(const Window& window, int64_t c, float* v, int64_t step) {
  Vector columns[8][8];  // [column][row]
#pragma GCC unroll 1
  for (int j = 0; j < 8; ++j) {
    Vector d[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) d[i] = load_vector<Vector>(window.rows[i] + window.columns[j] + c);
    Lines<kOutputSide>::input(d, columns[j]);
  }
#pragma GCC unroll 1
  for (int i = 0; i < 8; ++i) {
    Vector d[8], to[8];
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) d[j] = columns[j][i];
    Lines<kOutputSide>::input(d, to);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) store_vector(v + (8 * i + j) * step + c, to[j]);
  }
}

template <typename Vector>
ANDFAST_BODY void input_body(const Window& window, int64_t channels, float* v, int64_t step) {
  constexpr int64_t lanes = sizeof(Vector) / sizeof(float);
  int64_t c = 0;
  for (; c + lanes <= channels; c += lanes) input_vector<Vector>(window, c, v, step);
  for (; c < channels; ++c) input_vector<float>(window, c, v, step);
}

// The destination of a tile's results; `height` and `width` count those inside of the image.
struct Target {
  float* first;
  int64_t row_step, step;
  const float* residual;  // of the first one
  int64_t residual_row_step, residual_step;
  int64_t height, width;
};

// A vector of channels of a tile's results, A^T m A.
template <typename Vector>
ANDFAST_BODY void output_vector(const float* m, int64_t step, int64_t c, const Target& to,
                                const LargeEpilogue& epilogue) {
  Vector columns[8][6];  // [column][row]
#pragma GCC unroll 1
  for (int j = 0; j < 8; ++j) {
    Vector line[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) line[i] = load_vector<Vector>(m + (8 * i + j) * step + c);
    Lines<kOutputSide>::output(line, columns[j]);
  }
  const Vector bias = load_vector<Vector>(epilogue.bias + c);
#pragma GCC unroll 1
  for (int i = 0; i < to.height; ++i) {
    Vector line[8], z[6];
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) line[j] = columns[j][i];
    Lines<kOutputSide>::output(line, z);
    float* const row = to.first + i * to.row_step + c;
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) {
      if (j == to.width) break;
      Vector value = z[j] + bias;
      if (epilogue.slope) {
        const Vector sloped = value * load_vector<Vector>(epilogue.slope + c);
        value = value > 0 ? value : sloped;
      } else if (to.residual) {
        const float* added = to.residual + i * to.residual_row_step + j * to.residual_step;
        value = load_vector<Vector>(added + c) + epilogue.gain * value;
      }
      store_vector(row + j * to.step, value);
    }
  }
}

template <typename Vector>
ANDFAST_BODY void output_body(const float* m, int64_t step, int64_t channels, const Target& to,
                              const LargeEpilogue& epilogue) {
  constexpr int64_t lanes = sizeof(Vector) / sizeof(float);
  int64_t c = 0;
  for (; c + lanes <= channels; c += lanes) output_vector<Vector>(m, step, c, to, epilogue);
  for (; c < channels; ++c) output_vector<float>(m, step, c, to, epilogue);
}

using InputTransform = void (*)(const Window&, int64_t, float*, int64_t);
using OutputTransform = void (*)(const float*, int64_t, int64_t, const Target&, const LargeEpilogue&);
struct Transforms {
  InputTransform input;
  OutputTransform output;
};

#define ANDFAST_TRANSFORMS(name, target, Vector)                                                        \
  target void input_transform_##name(const Window& window, int64_t channels, float* v, int64_t step) {  \
    input_body<Vector>(window, channels, v, step);                                                      \
  }                                                                                                     \
  target void output_transform_##name(const float* m, int64_t step, int64_t channels, const Target& to, \
                                      const LargeEpilogue& epilogue) {                                  \
    output_body<Vector>(m, step, channels, to, epilogue);                                               \
  }
ANDFAST_TRANSFORMS(baseline, , Float4)
#if defined(__x86_64__)
ANDFAST_TRANSFORMS(avx2, __attribute__((target("avx2,fma"))), Float8)
ANDFAST_TRANSFORMS(avx512, __attribute__((target("avx512f,fma"))), Float16)
#endif

Transforms fastest_transforms() {
#if defined(__x86_64__)
  if (has_avx512()) return {input_transform_avx512, output_transform_avx512};
  if (has_avx2()) return {input_transform_avx2, output_transform_avx2};
#endif
  return {input_transform_baseline, output_transform_baseline};
}

const Transforms& transforms() {
  static const Transforms fastest = fastest_transforms();
  return fastest;
}

bool inside(const LargeTiling& tiling, Place place) {
  return place.h > 0 && place.w > 0 && place.h + kOutputSide < tiling.height && place.w + kOutputSide < tiling.width;
}

// The pixels of a tile that does not touch the image's edge.
Window inner(Place place, const Source& source) {
  Window window;
  for (int64_t i = 0; i < kInputSide; ++i) {
    window.rows[i] = source.row(place.image, place.h - 1 + i);
    window.columns[i] = source.column(place.w - 1 + i);
  }
  return window;
}

// The pixels around a tile at the image's edge, with zeros outside, in `copy`: (kInputSide, kInputSide, channels).
Window bordered(const LargeTiling& tiling, Place place, const Source& source, float* copy) {
  const int64_t channels = source.pixels.channels;
  Window window;
  for (int64_t i = 0; i < kInputSide; ++i) {
    const int64_t h = place.h - 1 + i;
    const float* row = h < 0 || h >= tiling.height ? nullptr : source.row(place.image, h);
    window.rows[i] = copy + i * kInputSide * channels;
    window.columns[i] = i * channels;
    for (int64_t j = 0; j < kInputSide; ++j) {
      const int64_t w = place.w - 1 + j;
      float* to = copy + (i * kInputSide + j) * channels;
      if (row && w >= 0 && w < tiling.width) {
        std::copy_n(row + source.column(w), channels, to);
      } else {
        std::fill_n(to, channels, 0.0f);
      }
    }
  }
  return window;
}

void prefetch_window(const Window& window, int64_t bytes) {
  for (const float* row : window.rows) {
    for (int64_t column : window.columns) prefetch<false>(row + column, bytes);
  }
}

}  // namespace

void input_transform_tiles(const LargeTiling& tiling, Chunk chunk, const Source& source, float* v, int64_t tile_step,
                           int64_t step) {
  const int64_t channels = source.pixels.channels, bytes = channels * sizeof(float);
  std::vector<float> copy(kLargeElements * channels);
  for (int64_t t = 0; t < chunk.count; ++t) {
    const Place place = tiling.at(chunk.first + t), next = tiling.at(chunk.first + t + 1);
    if (t + 1 < chunk.count) {
      if (inside(tiling, next)) prefetch_window(inner(next, source), bytes);
      for (int64_t e = 0; e < kLargeElements; ++e) prefetch<true>(v + (t + 1) * tile_step + e * step, bytes);
    }
    const Window window = inside(tiling, place) ? inner(place, source) : bordered(tiling, place, source, copy.data());
    transforms().input(window, channels, v + t * tile_step, step);
  }
}

void output_transform_tiles(const LargeTiling& tiling, Chunk chunk, const float* m, int64_t tile_step, int64_t step,
                            const Rows<float>& results, const LargeEpilogue& epilogue) {
  Target to = {nullptr, results.row_step, results.channels, nullptr, 0, 0, 0, 0};
  for (int64_t t = 0; t < chunk.count; ++t) {
    const Place place = tiling.at(chunk.first + t);
    to.first = results.at(place.image, place.h) + place.w * results.channels;
    to.height = std::min<int64_t>(kOutputSide, tiling.height - place.h),
    to.width = std::min<int64_t>(kOutputSide, tiling.width - place.w);
    for (int64_t i = 0; i < to.height; ++i) {
      prefetch<true>(to.first + i * to.row_step, to.width * to.step * sizeof(float));
    }
    if (epilogue.residual) {
      to.residual = epilogue.residual->at(place.image, place.h) + place.w * epilogue.residual->channels;
      to.residual_row_step = epilogue.residual->row_step, to.residual_step = epilogue.residual->channels;
      for (int64_t i = 0; i < to.height; ++i) {
        prefetch<false>(to.residual + i * to.residual_row_step, to.width * to.residual_step * sizeof(float));
      }
    }
    if (t + 1 < chunk.count) {
      for (int64_t e = 0; e < kLargeElements; ++e) {
        prefetch<false>(m + (t + 1) * tile_step + e * step, results.channels * sizeof(float));
      }
    }
    transforms().output(m + t * tile_step, step, results.channels, to, epilogue);
  }
}

LargeWeights::LargeWeights(const Weights& weights, int64_t inputs, int64_t outputs, ParallelFor parallel_for)
    : inputs(inputs), padded(round_up(outputs, kLane)), values(kLargeElements * inputs * padded) {
  transform_weights<kOutputSide>(1, inputs, outputs, values.get(), parallel_for, [&](int64_t, int64_t c) {
    const WeightSteps& steps = weights.steps;
    return Taps{weights.taps + c * steps.input_step, steps.output_step, steps.tap_step};
  });
}

}  // namespace andfast::cpu
