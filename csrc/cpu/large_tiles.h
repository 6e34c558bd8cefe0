// Winograd's F(6 x 6, 3 x 3): input and output transforms of large tiles, and the matrix products between them. 36
// results of a 3x3 convolution take 64 products instead of 324 (Lavin and Gray, 2016). float32; only the result is
// kept.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "tiles.h"

namespace andfast::cpu {

constexpr int kOutputSide = 6, kInputSide = Sizes<kOutputSide>::kSide;  // results and pixels of a tile, along a side
constexpr int64_t kLargeElements = Sizes<kOutputSide>::kElements;
using LargeTiling = Tiling<kOutputSide>;

// A ring buffer of `held` rows of pixels: rows h and h + held share their memory. Whole images are the case where
// `held` is at least the number of all their rows.
template <typename T>
struct Rows {
  T* pixels;
  int64_t channels, row_step;  // numbers of a pixel, and from row to row
  int64_t image_rows, held;    // rows from image to image, and in memory

  T* at(int64_t image, int64_t h) const { return pixels + (image * image_rows + h) % held * row_step; }
  operator Rows<const T>() const { return {pixels, channels, row_step, image_rows, held}; }
};

template <typename T>
Rows<T> whole_images(T* pixels, int64_t images, int64_t height, int64_t width, int64_t channels) {
  return {pixels, channels, width * channels, height, images * height};
}

// The input of a convolution: each pixel is repeated repeat x repeat times (nearest-neighbour upsampling).
struct Source {
  Rows<const float> pixels;
  int64_t repeat = 1;

  const float* row(int64_t image, int64_t h) const { return pixels.at(image, h / repeat); }
  int64_t column(int64_t w) const { return w / repeat * pixels.channels; }
};

// Consecutive tiles that are processed together.
struct Chunk {
  int64_t first, count;
};

// Writes B^T d B of the pixels that each tile reads: element e of channel c of tile t to
// v[e * step + t * tile_step + c]. Pixels outside of the image are zero.
void input_transform_tiles(const LargeTiling& tiling, Chunk chunk, const Source& source, float* v, int64_t tile_step,
                           int64_t step);

// Epilogue of the results: LeakyReLU(z + bias) if there is a slope, or else residual + gain (z + bias) if there is a
// residual. `bias` and `slope` have one number per channel.
struct LargeEpilogue {
  const float* bias;
  const float* slope;
  const Rows<const float>* residual;
  float gain;
};

// Computes A^T m A, with element e of channel c of tile t at m[e * step + t * tile_step + c], and writes the pixels.
void output_transform_tiles(const LargeTiling& tiling, Chunk chunk, const float* m, int64_t tile_step, int64_t step,
                            const Rows<float>& results, const LargeEpilogue& epilogue);

// The weights of a convolution, transformed: for each element and lane of outputs (inputs, kLane), zeros where padded.
struct LargeWeights {
  LargeWeights(const Weights& weights, int64_t inputs, int64_t outputs, ParallelFor parallel_for);

  // The products of a chunk's tiles: of element e of all inputs at v[e * v_step + t * v_tile_step], to `padded` numbers
  // at m[e * m_step + t * padded].
  void multiply(int64_t tiles, const float* v, int64_t v_tile_step, int64_t v_step, float* m, int64_t m_step) const {
    multiply_elements(kLargeElements, round_up(tiles, 2), v, v_tile_step, v_step, values.get(), inputs, padded, m,
                      m_step);
  }

  int64_t inputs, padded;  // padded: outputs, to whole lanes
  Scratch values;
};

}  // namespace andfast::cpu
