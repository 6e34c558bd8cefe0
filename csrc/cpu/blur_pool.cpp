// Anti-aliased pooling, alone and behind a block (andfast/ops/blur_pool.py and backends/library.py). Windows are summed
// down the columns first: a row of the output is a weighted sum of scale + 2 rows, then of scale + 2 pixels.
#include <algorithm>
#include <vector>

#include "rows.h"

namespace andfast::cpu {
namespace {

// sum[i] += weight * row[i]
template <typename T>
ANDFAST_BODY void add_scaled_body(const T* row, float weight, float* sum, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) sum[i] += weight * load(row[i]);
}
ANDFAST_CLONES void add_scaled(const float* row, float weight, float* sum, int64_t count) {
  add_scaled_body(row, weight, sum, count);
}
ANDFAST_CLONES void add_scaled(const bfloat16* row, float weight, float* sum, int64_t count) {
  add_scaled_body(row, weight, sum, count);
}

// A block's epilogue on one row, weighted and added to the sums of y and of min(z, 0). `sign_mask` may be null: a row
// is read by two windows, and only one of them writes it.
template <bool kTwo, typename T>
ANDFAST_BODY void add_epilogue_body(const T* a, const T* b, const float* strength, const float* noise,
                                    float slope_minus_one, float weight, float* y_sum, float* negative_sum,
                                    uint8_t* sign_mask, uint8_t* negative, int64_t width, int64_t channels) {
  const int64_t bytes = sign_bytes(channels);
  for (int64_t w = 0; w < width; ++w, a += channels, b += kTwo ? channels : 0) {
    const float field = noise[w];
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const float z = kTwo ? load(a[c]) + load(b[c]) : load(a[c]);
      y_sum[c] += weight * andfast::block_epilogue(z, slope_minus_one, strength[c] * field);
      negative_sum[c] += weight * (z < 0 ? z : 0.0f);
      negative[c] = z < 0;
    }
    y_sum += channels;
    negative_sum += channels;
    if (!sign_mask) continue;
    for (int64_t i = 0; i < bytes; ++i) *sign_mask++ = pack_bits(negative + 8 * i);
  }
}
template <typename T>
ANDFAST_BODY void add_epilogue_either(const T* a, const T* b, const float* strength, const float* noise,
                                      float slope_minus_one, float weight, float* y_sum, float* negative_sum,
                                      uint8_t* sign_mask, uint8_t* negative, int64_t width, int64_t channels) {
  if (b) {
    add_epilogue_body<true>(a, b, strength, noise, slope_minus_one, weight, y_sum, negative_sum, sign_mask, negative,
                            width, channels);
  } else {
    add_epilogue_body<false>(a, b, strength, noise, slope_minus_one, weight, y_sum, negative_sum, sign_mask, negative,
                             width, channels);
  }
}
ANDFAST_CLONES void add_epilogue(const float* a, const float* b, const float* strength, const float* noise,
                                 float slope_minus_one, float weight, float* y_sum, float* negative_sum,
                                 uint8_t* sign_mask, uint8_t* negative, int64_t width, int64_t channels) {
  add_epilogue_either(a, b, strength, noise, slope_minus_one, weight, y_sum, negative_sum, sign_mask, negative, width,
                      channels);
}
ANDFAST_CLONES void add_epilogue(const bfloat16* a, const bfloat16* b, const float* strength, const float* noise,
                                 float slope_minus_one, float weight, float* y_sum, float* negative_sum,
                                 uint8_t* sign_mask, uint8_t* negative, int64_t width, int64_t channels) {
  add_epilogue_either(a, b, strength, noise, slope_minus_one, weight, y_sum, negative_sum, sign_mask, negative, width,
                      channels);
}

// A row of column sums (width, channels) into a row of the output, (width / scale, channels).
template <typename T>
ANDFAST_BODY void pool_row_body(const float* sums, T* out, float* pixel, int64_t width, int64_t channels,
                                int64_t scale) {
  for (int64_t j = 0; j < width / scale; ++j, out += channels) {
    std::fill(pixel, pixel + channels, 0.0f);
    for (int64_t i = 0; i < scale + 2; ++i) {
      add_scaled_body(sums + reflect(scale * j + i - 1, width) * channels, pooling_tap(int(i), int(scale)), pixel,
                      channels);
    }
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) store(out[c], pixel[c]);
  }
}
ANDFAST_CLONES void pool_row(const float* sums, float* out, float* pixel, int64_t width, int64_t channels,
                             int64_t scale) {
  pool_row_body(sums, out, pixel, width, channels, scale);
}
ANDFAST_CLONES void pool_row(const float* sums, bfloat16* out, float* pixel, int64_t width, int64_t channels,
                             int64_t scale) {
  pool_row_body(sums, out, pixel, width, channels, scale);
}

// Backward pass: a row of the input's gradient from the sum of the output rows that read it. With `sign_mask` it
// includes the LeakyReLU before the pooling.
template <typename T>
ANDFAST_BODY void spread_row_body(const float* sums, const Readers* columns, const uint8_t* sign_mask,
                                  float slope_minus_one, T* out, uint8_t* negative, int64_t width, int64_t channels,
                                  int64_t scale) {
  const int64_t bytes = sign_bytes(channels), last = width / scale - 1;
  if (sign_mask) unpack_row(sign_mask, negative, width * bytes);
  for (int64_t w = 0; w < width; ++w, out += channels, negative += 8 * bytes) {
    const Readers& from = columns[w];
    // With a single reader, the other weight is 0 and multiplies a value of the same reader: no pixel outside is read.
    const float* first = sums + std::max<int64_t>(from.first, 0) * channels;
    const float* second = sums + std::min<int64_t>(from.first + 1, last) * channels;
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const float grad = from.weight[0] * first[c] + from.weight[1] * second[c];
      store(out[c], grad + grad * slope_minus_one *
                               float(negative[c]));  // arithmetic instead of a select, as in block_epilogue.cpp
    }
  }
}
ANDFAST_CLONES void spread_row(const float* sums, const Readers* columns, const uint8_t* sign_mask,
                               float slope_minus_one, float* out, uint8_t* negative, int64_t width, int64_t channels,
                               int64_t scale) {
  spread_row_body(sums, columns, sign_mask, slope_minus_one, out, negative, width, channels, scale);
}
ANDFAST_CLONES void spread_row(const float* sums, const Readers* columns, const uint8_t* sign_mask,
                               float slope_minus_one, bfloat16* out, uint8_t* negative, int64_t width, int64_t channels,
                               int64_t scale) {
  spread_row_body(sums, columns, sign_mask, slope_minus_one, out, negative, width, channels, scale);
}

// Both gradients: sign_mask and slope_minus_one may be null.
template <typename T>
void spread(const T* dpooled, const uint8_t* sign_mask, const float* slope_minus_one, T* out, BlockShape shape,
            int64_t scale, ParallelFor parallel_for) {
  const int64_t height = shape.height, width = shape.width, channels = shape.channels;
  const int64_t pooled_row = width / scale * channels, pooled_height = height / scale;
  const int64_t group = shape.networks ? shape.images / shape.networks : 0;
  std::vector<Readers> columns(width);
  for (int64_t w = 0; w < width; ++w) columns[w] = readers(int(w), int(width), int(scale));
  parallel_for(shape.images * height, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> sums(pooled_row);
    std::vector<uint8_t> negative(width * sign_bytes(channels) * 8);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / height;
      const Readers rows = readers(int(i % height), int(height), int(scale));
      std::fill(sums.begin(), sums.end(), 0.0f);
      for (int k = 0; k < 2; ++k) {
        if (rows.weight[k] == 0) continue;
        add_scaled(dpooled + (image * pooled_height + rows.first + k) * pooled_row, rows.weight[k], sums.data(),
                   pooled_row);
      }
      spread_row(sums.data(), columns.data(), sign_mask ? sign_mask + i * width * sign_bytes(channels) : nullptr,
                 sign_mask ? slope_minus_one[image / group] : 0.0f, out + i * width * channels, negative.data(), width,
                 channels, scale);
    }
  });
}

}  // namespace

template <typename T>
void block_epilogue_pool(const T* a, const T* b, const float* slope_minus_one, Noise noise, T* pooled, T* negative,
                         uint8_t* sign_mask, BlockShape shape, int64_t scale, int64_t border,
                         ParallelFor parallel_for) {
  const int64_t height = shape.height, width = shape.width, channels = shape.channels, row = width * channels;
  const int64_t pooled_height = height / scale, pooled_width = width / scale;
  const int64_t bordered_row = (pooled_width + 2 * border) * channels;
  const int64_t bordered_image = (pooled_height + 2 * border) * bordered_row;
  parallel_for(shape.images * pooled_height, 1, [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> bytes(channels + 8);
    std::vector<float> y_sum(row), negative_sum(row), pixel(channels);
    NoiseRows rows(noise, shape);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / pooled_height, j = i % pooled_height;
      std::fill(y_sum.begin(), y_sum.end(), 0.0f);
      std::fill(negative_sum.begin(), negative_sum.end(), 0.0f);
      for (int64_t t = 0; t < scale + 2; ++t) {
        const int64_t h = reflect(scale * j + t - 1, height), at = image * height + h;
        const bool owned = t >= 1 && t <= scale;
        rows.seek(image, h);
        add_epilogue(a + at * row, b ? b + at * row : nullptr, rows.strength, rows.noise, slope_minus_one[rows.network],
                     pooling_tap(int(t), int(scale)), y_sum.data(), negative_sum.data(),
                     owned ? sign_mask + at * width * sign_bytes(channels) : nullptr, bytes.data(), width, channels);
      }
      T* out = pooled + image * bordered_image + (j + border) * bordered_row;
      pool_row(y_sum.data(), out + border * channels, pixel.data(), width, channels, scale);
      if (border) replicate_row(out, j, pooled_height, pooled_width, channels);
      pool_row(negative_sum.data(), negative + i * pooled_width * channels, pixel.data(), width, channels, scale);
    }
  });
}

template <typename T>
void block_epilogue_pool_grad(const T* dpooled, const uint8_t* sign_mask, const float* slope_minus_one, T* dz,
                              BlockShape shape, int64_t scale, ParallelFor parallel_for) {
  spread(dpooled, sign_mask, slope_minus_one, dz, shape, scale, parallel_for);
}

template <typename T>
void blur_pool(const T* image, T* pooled, BlockShape shape, int64_t scale, ParallelFor parallel_for) {
  const int64_t height = shape.height, row = shape.width * shape.channels, pooled_height = height / scale;
  parallel_for(shape.images * pooled_height, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> sums(row), pixel(shape.channels);
    for (int64_t i = begin; i < end; ++i) {
      std::fill(sums.begin(), sums.end(), 0.0f);
      for (int64_t t = 0; t < scale + 2; ++t) {
        const int64_t h = reflect(scale * (i % pooled_height) + t - 1, height);
        add_scaled(image + (i / pooled_height * height + h) * row, pooling_tap(int(t), int(scale)), sums.data(), row);
      }
      pool_row(sums.data(), pooled + i * (row / scale), pixel.data(), shape.width, shape.channels, scale);
    }
  });
}

template <typename T>
void blur_pool_grad(const T* dpooled, T* dimage, BlockShape shape, int64_t scale, ParallelFor parallel_for) {
  spread<T>(dpooled, nullptr, nullptr, dimage, shape, scale, parallel_for);
}

#define INSTANTIATE(T)                                                                                              \
  template void block_epilogue_pool(const T*, const T*, const float*, Noise, T*, T*, uint8_t*, BlockShape, int64_t, \
                                    int64_t, ParallelFor);                                                          \
  template void block_epilogue_pool_grad(const T*, const uint8_t*, const float*, T*, BlockShape, int64_t,           \
                                         ParallelFor);                                                              \
  template void blur_pool(const T*, T*, BlockShape, int64_t, ParallelFor);                                          \
  template void blur_pool_grad(const T*, T*, BlockShape, int64_t, ParallelFor);
INSTANTIATE(float)
INSTANTIATE(bfloat16)

}  // namespace andfast::cpu
