// Shared by all convolutions: input and output transforms of Winograd's tiles (winograd.h), and the matrix products
// between.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "gemm.h"
#include "winograd.h"

namespace andfast::cpu {

// Tiles between two accesses of the transformed weights: a multiple of gemm's register tiles, and so few that they fit
// with the weights and the products into a second-level cache of half a megabyte.
constexpr int64_t kTiles = 24;

// The distance between elements of transformed tiles. Not a power of two: all sixteen would then compete for the same
// few lines of the first-level cache.
constexpr int64_t element_step(int64_t tiles, int64_t channels) { return tiles * channels + kLane; }

// Some channels of an image's pixels, (height, width), `step` numbers from pixel to pixel; pixels outside are zero.
struct Plane {
  const float* pixels;
  int64_t height, width, step, channels;
  const float* zeros;  // a pixel

  const float* at(int64_t h, int64_t w) const {
    return h < 0 || h >= height || w < 0 || w >= width ? zeros : pixels + (h * width + w) * step;
  }
};

// Some channels of all images' pixels.
struct Channels {
  const float* pixels;
  int64_t step, count;

  Plane plane(int64_t image, int64_t height, int64_t width, const float* zeros) const {
    return {pixels + image * height * width * step, height, width, step, count, zeros};
  }
};

// The tiles of the results of some images, numbered image by image and row by row; kTiles neighbours are a group.
struct Tiling {
  int64_t images, height, width;  // of the results

  struct Place {
    int64_t image, h, w;
  };

  int64_t down() const { return (height + 1) / 2; }
  int64_t across() const { return (width + 1) / 2; }
  int64_t count() const { return images * down() * across(); }
  int64_t groups() const { return (count() + kTiles - 1) / kTiles; }
  // Of a tile's first result.
  Place at(int64_t tile) const {
    const int64_t row = tile / across();
    return {row / down(), row % down() * 2, tile % across() * 2};
  }
  // Of a result among all results.
  int64_t index(Place place) const { return (place.image * height + place.h) * width + place.w; }
};

// Where results are written: `channels` of each pixel of images with a border around them, `step` from pixel to pixel.
struct Results {
  float* images;
  int64_t step, channels, border;

  float* at(const Tiling& tiling, Tiling::Place place) const {
    const int64_t row = place.image * (tiling.height + 2 * border) + place.h + border;
    return images + (row * (tiling.width + 2 * border) + place.w + border) * step;
  }
};

// The taps from or to one channel: tap t of channel c at first[c * channel_step + t * tap_step].
struct Taps {
  const float* first;
  int64_t channel_step, tap_step;

  Taps flipped() const { return {first + 8 * tap_step, channel_step, -tap_step}; }  // for the gradient of the input
};

// Writes B^T d B of the 4 x 4 pixels from (top, left) on: element e of channel c to v[e * step + c].
void input_transform(const Plane& image, int64_t top, int64_t left, float* v, int64_t step);

// Writes A g A^T of the 2 x 2 gradients from (top, left) on, as `input_transform` does.
void gradient_transform(const Plane& image, int64_t top, int64_t left, float* v, int64_t step);

// Writes the 2 x 2 results of a tile, element e of channel c at m[e * step + c], to (to[i][j])[c] each.
void output_transform(const float* m, int64_t step, float* const to[2][2], int64_t channels);

// Transforms the taps from one channel that is read to `count` channels that are written, times `factor`: element e of
// channel c to u[e * step + c]. `scratch` holds 25 numbers a channel.
void weight_transform(const Taps& taps, int64_t count, float factor, float* u, int64_t step, float* scratch);

// The weights' gradients from element e of channel c at m[e * step + c], times `factor`, to where `Taps` would be.
void weight_gradient_transform(const float* m, int64_t step, float factor, float* grad, int64_t channel_step,
                               int64_t tap_step, int64_t channels);

// Epilogues of one pixel, (channels); `slope` has one number per channel, `bytes` is scratch, 8 for each byte of the
// sign mask. z = LeakyReLU(z + bias); a bit per channel marks the negative ones, unless `sign_mask` is null.
void activate(float* z, const float* bias, const float* slope, uint8_t* sign_mask, uint8_t* bytes, int64_t channels);
// z = z + slope_minus_one min(z, 0) + noise, and a bit per channel for the negative ones.
void block_epilogue_pixel(float* z, float slope_minus_one, float noise, uint8_t* sign_mask, uint8_t* bytes,
                          int64_t channels);
// The gradient of z from the gradient of LeakyReLU(z), in place.
void leaky_relu_backward_pixel(float* dz, const float* slope, const uint8_t* sign_mask, uint8_t* bytes,
                               int64_t channels);
// z = residual + gain (z + bias).
void add_to_residual(float* z, const float* bias, float gain, const float* residual, int64_t channels);

// The products of a group of tiles, at most kTiles of them, with `weights`: element e is (depth, padded) at e * depth *
// padded. read_tile(place, v, step) transforms the input of a tile: element e of channel c to v[e * step + c]; what it
// does not write must be in `v` already, from an earlier call for these tiles with the same number of channels.
// write_results(place, m, step) takes the results, element e of channel c at m[e * step + c].
template <typename ReadTile, typename WriteResults>
void multiply_group(const Tiling& tiling, int64_t group, const float* weights, int64_t depth, int64_t padded, float* v,
                    int64_t channels, float* m, ReadTile read_tile, WriteResults write_results) {
  static const Gemm product = fastest_gemm();
  const int64_t begin = group * kTiles, count = std::min(kTiles, tiling.count() - begin);
  const int64_t v_step = element_step(kTiles, channels), m_step = element_step(kTiles, padded);
  for (int64_t t = 0; t < count; ++t) read_tile(tiling.at(begin + t), v + t * channels, v_step);
  for (int64_t e = 0; e < kElements; ++e) {
    product(v + e * v_step, channels, 1, weights + e * depth * padded, padded, m + e * m_step, padded,
            round_up(count, kRows), padded, depth, false);
  }
  for (int64_t t = 0; t < count; ++t) write_results(tiling.at(begin + t), m + t * padded, m_step);
}

// The results of a tile, from `m`, to their pixels; then finish(pixel, its place) for each of those that exist.
// `unwanted` holds a pixel.
template <typename Finish>
void write_tile(const Tiling& tiling, Tiling::Place first, const float* m, int64_t m_step, const Results& results,
                float* unwanted, Finish finish) {
  float* to[2][2];
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 2; ++j) {
      const Tiling::Place place = {first.image, first.h + i, first.w + j};
      to[i][j] = place.h < tiling.height && place.w < tiling.width ? results.at(tiling, place) : unwanted;
    }
  }
  output_transform(m, m_step, to, results.channels);
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 2; ++j) {
      if (to[i][j] != unwanted) finish(to[i][j], Tiling::Place{first.image, first.h + i, first.w + j});
    }
  }
}

}  // namespace andfast::cpu
