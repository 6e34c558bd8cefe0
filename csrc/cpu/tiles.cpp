// The functions of tiles.h, compiled for several instruction sets.
#include "tiles.h"

#include <type_traits>

#include "rows.h"

namespace andfast::cpu {

ANDFAST_CLONES void input_transform(const Plane& image, int64_t top, int64_t left, float* v, int64_t step) {
  const float* from[4][4];
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) from[i][j] = image.at(top + i, left + j);
  }
#pragma omp simd
  for (int64_t c = 0; c < image.channels; ++c) {
    Tile d;
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) d.at[i][j] = from[i][j][c];
    }
    const Tile transformed = transform_input(d);
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) v[(4 * i + j) * step + c] = transformed.at[i][j];
    }
  }
}

ANDFAST_CLONES void gradient_transform(const Plane& image, int64_t top, int64_t left, float* v, int64_t step) {
  const float* from[2][2];
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 2; ++j) from[i][j] = image.at(top + i, left + j);
  }
#pragma omp simd
  for (int64_t c = 0; c < image.channels; ++c) {
    const float g[2][2] = {{from[0][0][c], from[0][1][c]}, {from[1][0][c], from[1][1][c]}};
    const Tile transformed = transform_gradients(g);
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) v[(4 * i + j) * step + c] = transformed.at[i][j];
    }
  }
}

ANDFAST_CLONES void output_transform(const float* m, int64_t step, float* const to[2][2], int64_t channels) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    Tile products;
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) products.at[i][j] = m[(4 * i + j) * step + c];
    }
    float results[2][2];
    transform_output(products, results);
    to[0][0][c] = results[0][0], to[0][1][c] = results[0][1];
    to[1][0][c] = results[1][0], to[1][1][c] = results[1][1];
  }
}

ANDFAST_CLONES void weight_transform(const Taps& taps, int64_t count, float factor, float* u, int64_t step,
                                     float* scratch) {
  float *by_tap = scratch, *elements = scratch + 9 * count;  // so that channels are neighbours
  for (int64_t c = 0; c < count; ++c) {
    for (int t = 0; t < 9; ++t) by_tap[t * count + c] = factor * taps.first[c * taps.channel_step + t * taps.tap_step];
  }
#pragma omp simd
  for (int64_t c = 0; c < count; ++c) {
    float weight[9];
    for (int t = 0; t < 9; ++t) weight[t] = by_tap[t * count + c];
    const Tile transformed = transform_weight(weight);
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) elements[(4 * i + j) * count + c] = transformed.at[i][j];
    }
  }
  for (int64_t e = 0; e < kElements; ++e) std::copy(elements + e * count, elements + (e + 1) * count, u + e * step);
}

namespace {

template <typename Step>
ANDFAST_BODY void weight_gradient_transform_body(const float* m, int64_t step, float factor, float* grad,
                                                 Step channel_step, int64_t tap_step, int64_t channels) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    Tile products;
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) products.at[i][j] = factor * m[(4 * i + j) * step + c];
    }
    float taps[9];
    transform_weight_gradient(products, taps);
    for (int t = 0; t < 9; ++t) grad[c * channel_step + t * tap_step] = taps[t];
  }
}

}  // namespace

ANDFAST_CLONES void weight_gradient_transform(const float* m, int64_t step, float factor, float* grad,
                                              int64_t channel_step, int64_t tap_step, int64_t channels) {
  if (channel_step == 1) {  // channels_last: whole vectors are stored
    weight_gradient_transform_body(m, step, factor, grad, std::integral_constant<int64_t, 1>(), tap_step, channels);
  } else {
    weight_gradient_transform_body(m, step, factor, grad, channel_step, tap_step, channels);
  }
}

ANDFAST_CLONES void activate(float* z, const float* bias, const float* slope, uint8_t* sign_mask, uint8_t* bytes,
                             int64_t channels) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) z[c] += bias[c];
  leaky_relu_body(z, slope, z, sign_mask, bytes, channels);
}

ANDFAST_CLONES void block_epilogue_pixel(float* z, float slope_minus_one, float noise, uint8_t* sign_mask,
                                         uint8_t* bytes, int64_t channels) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    bytes[c] = z[c] < 0;
    z[c] = andfast::block_epilogue(z[c], slope_minus_one, noise);
  }
  for (int64_t i = 0; i < sign_bytes(channels); ++i) sign_mask[i] = pack_bits(bytes + 8 * i);
}

ANDFAST_CLONES void leaky_relu_backward_pixel(float* dz, const float* slope, const uint8_t* sign_mask, uint8_t* bytes,
                                              int64_t channels) {
  leaky_relu_backward_body(dz, slope, sign_mask, dz, bytes, channels);
}

ANDFAST_CLONES void add_to_residual(float* z, const float* bias, float gain, const float* residual, int64_t channels) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) z[c] = residual[c] + gain * (z[c] + bias[c]);
}

}  // namespace andfast::cpu
