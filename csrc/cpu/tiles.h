// Shared by all convolutions: input and output transforms of Winograd's tiles (winograd.h), and the matrix products
// between.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "gemm.h"
#include "kernels.h"
#include "scratch.h"
#include "vectors.h"

namespace andfast::cpu {

// The sizes of F(kOut x kOut, 3 x 3): pixels of a tile along a side, elements, and at most how many tiles are
// multiplied between two accesses of the transformed weights, which come from the second-level cache or beyond: a
// multiple of gemm's register tiles.
template <int kOut>
struct Sizes {
  static constexpr int kSide = kOut + 2;
  static constexpr int64_t kElements = kSide * kSide, kTiles = kOut == 2 ? 24 : 48;
};

// Calls task(std::integral_constant<int, kOut>()) with the tile that takes fewer products for results of this size.
template <typename Task>
void with_tiles(int64_t height, int64_t width, Task task) {
  const auto products = [&](int64_t out) {
    return (height + out - 1) / out * ((width + out - 1) / out) * (out + 2) * (out + 2);
  };
  if (products(4) < products(2)) return task(std::integral_constant<int, 4>());
  task(std::integral_constant<int, 2>());
}

// The distance between elements of transformed tiles. Not a power of two: all elements would then compete for the same
// few lines of the first-level cache.
constexpr int64_t element_step(int64_t tiles, int64_t channels) { return tiles * channels + kLane; }

// Whether an image of so many numbers is too large for the second-level cache.
constexpr bool is_far(int64_t numbers) { return numbers * int64_t{sizeof(float)} >= int64_t{1} << 20; }

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

// A pixel of some images.
struct Place {
  int64_t image, h, w;
};

// The tiles of the results of some images, numbered image by image and row by row. Neighbours are multiplied in groups,
// as many or a few more for each of `threads`.
template <int kOut>
struct Tiling {
  int64_t images, height, width;  // of the results
  int64_t threads;

  int64_t down() const { return (height + kOut - 1) / kOut; }
  int64_t across() const { return (width + kOut - 1) / kOut; }
  int64_t count() const { return images * down() * across(); }
  int64_t group_size() const {
    const int64_t least = (count() + Sizes<kOut>::kTiles - 1) / Sizes<kOut>::kTiles;
    const int64_t wanted = least < 8 * threads ? round_up(least, threads) : least;
    return std::max(kRows, round_up((count() + wanted - 1) / std::max<int64_t>(1, wanted), kRows));
  }
  int64_t groups() const { return (count() + group_size() - 1) / group_size(); }
  // The size of a group's transformed tiles, and of those of all groups.
  int64_t group_numbers(int64_t channels) const {
    return Sizes<kOut>::kElements * element_step(group_size(), channels);
  }
  int64_t numbers(int64_t channels) const { return groups() * group_numbers(channels); }
  // Of a tile's first result.
  Place at(int64_t tile) const {
    const int64_t row = tile / across();
    return {row / down(), row % down() * kOut, tile % across() * kOut};
  }
  // Of a result among all results.
  int64_t index(Place place) const { return (place.image * height + place.h) * width + place.w; }
};

// Where results are written: `channels` of each pixel of images with a border around them, `step` from pixel to pixel.
struct Results {
  float* images;
  int64_t step, channels, border;

  float* at(int64_t height, int64_t width, Place place) const {  // of the images without border
    const int64_t row = place.image * (height + 2 * border) + place.h + border;
    return images + (row * (width + 2 * border) + place.w + border) * step;
  }
};

// The taps from or to one channel: tap t of channel c at first[c * channel_step + t * tap_step], times `factor`.
struct Taps {
  const float* first = nullptr;
  int64_t channel_step = 0, tap_step = 0;
  float factor = 1;

  Taps from(int64_t channel) const { return {first + channel * channel_step, channel_step, tap_step, factor}; }
  Taps flipped() const { return {first + 8 * tap_step, channel_step, -tap_step, factor}; }  // for an input's gradient
};

// Writes B^T d B of the pixels of a tile from (top, left) on: element e of channel c to v[e * step + c].
template <int kOut>
void input_transform(const Plane& image, int64_t top, int64_t left, float* v, int64_t step);

// Writes A g A^T of the kOut x kOut gradients from (top, left) on, as `input_transform` does.
template <int kOut>
void gradient_transform(const Plane& image, int64_t top, int64_t left, float* v, int64_t step);

// Writes the results of a tile, element e of channel c at m[e * step + c], to (to[kOut * i + j])[c] each.
template <int kOut>
void output_transform(const float* m, int64_t step, float* const* to, int64_t channels);

// Transforms the taps from `from` channels that are read, at most kTogether, to `to` channels that are written, at most
// kLane: element e of channels i and c to u[e * step + i * kLane + c], and zeros to the rest of a lane.
constexpr int64_t kTogether = 4;
template <int kOut>
void weight_transform(const Taps* taps, int64_t from, int64_t to, float* u, int64_t step);

// The weights' gradients from element e of channel c at m[e * step + c], times `factor`, to where `Taps` would be.
// `scratch` holds 9 numbers a channel.
template <int kOut>
void weight_gradient_transform(const float* m, int64_t step, float factor, float* grad, int64_t channel_step,
                               int64_t tap_step, int64_t channels, float* scratch);

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

// The transformed weights of each network's convolution from `from` channels to `to`: for each element, lane and
// channel that is read, kLane channels that are written. taps(network, channel) are the weights from a channel.
template <int kOut, typename TapsOf>
void transform_weights(int64_t networks, int64_t from, int64_t to, float* u, ParallelFor parallel_for, TapsOf taps) {
  const int64_t padded = round_up(to, kLane), parts = round_up(from, kTogether) / kTogether;
  const int64_t each = padded / kLane * parts;  // of a network
  parallel_for(networks * each, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t network = i / each, written = i % each / parts * kLane, read = i % parts * kTogether;
      const int64_t count = std::min(kTogether, from - read);
      Taps of_part[kTogether];
      for (int64_t c = 0; c < count; ++c) of_part[c] = taps(network, read + c).from(written);
      weight_transform<kOut>(of_part, count, std::min(kLane, to - written),
                             u + network * Sizes<kOut>::kElements * from * padded + written * from + read * kLane,
                             from * padded);
    }
  });
}

// The products of a group of tiles with the transformed `weights` from `depth` channels to `padded`. read_tile(place,
// v, step) transforms the input of a tile: element e of channel c to v[e * step + c]; what it does not write must be in
// `v` already, from an earlier call for these tiles with the same number of channels. write_results(place, m, step)
// takes the results, element e of channel c at m[e * step + c].
template <int kOut, typename ReadTile, typename WriteResults>
void multiply_group(const Tiling<kOut>& tiling, int64_t group, const float* weights, int64_t depth, int64_t padded,
                    float* v, int64_t channels, float* m, ReadTile read_tile, WriteResults write_results) {
  const int64_t begin = group * tiling.group_size(), count = std::min(tiling.group_size(), tiling.count() - begin);
  const int64_t v_step = element_step(tiling.group_size(), channels),
                m_step = element_step(tiling.group_size(), padded);
  for (int64_t t = 0; t < count; ++t) read_tile(tiling.at(begin + t), v + t * channels, v_step);
  const int64_t rows = round_up(count, 2);
  if (rows > count) {
    for (int64_t e = 0; e < Sizes<kOut>::kElements; ++e) std::fill_n(v + e * v_step + count * channels, channels, 0.0f);
  }
  multiply_elements(Sizes<kOut>::kElements, rows, v, channels, v_step, weights, depth, padded, m, m_step);
  for (int64_t t = 0; t < count; ++t) write_results(tiling.at(begin + t), m + t * padded, m_step);
}

// The results of a tile, from `m`, to their pixels; then finish(pixel, its place) for each of those that exist.
// `unwanted` holds a pixel.
template <int kOut, typename Finish>
void write_tile(const Tiling<kOut>& tiling, Place first, const float* m, int64_t m_step, const Results& results,
                float* unwanted, Finish finish) {
  float* to[kOut * kOut];
  const bool far = is_far(tiling.height * tiling.width * results.step);
  const auto place = [&](int k) { return Place{first.image, first.h + k / kOut, first.w + k % kOut}; };
  for (int k = 0; k < kOut * kOut; ++k) {
    const bool exists = place(k).h < tiling.height && place(k).w < tiling.width;
    to[k] = exists ? results.at(tiling.height, tiling.width, place(k)) : unwanted;
    // Of the next tile.
    if (far && exists && place(k).w + kOut < tiling.width) {
      prefetch<true>(to[k] + kOut * results.step, results.channels * sizeof(float));
    }
  }
  output_transform<kOut>(m, m_step, to, results.channels);
  for (int k = 0; k < kOut * kOut; ++k) {
    if (to[k] != unwanted) finish(to[k], place(k));
  }
}

}  // namespace andfast::cpu
