// Winograd's F(6 x 6, 3 x 3): input and output transforms of large tiles, and the matrix products between them. 36
// results of a 3x3 convolution take 64 products instead of 324 (Lavin and Gray, 2016). float32; only the result is
// kept.
#pragma once

#include <cstdint>
#include <vector>

#include "gemm.h"
#include "kernels.h"
#include "scratch.h"

namespace andfast::cpu {

constexpr int64_t kOutputSide = 6, kInputSide = kOutputSide + 2;  // results and pixels of a tile, along a side
constexpr int64_t kLargeElements = kInputSide * kInputSide;

// The tiles of the results of some images, numbered image by image and row by row.
struct LargeTiling {
  int64_t images, height, width;  // of the results

  struct Place {
    int64_t image, h, w;
  };

  int64_t down() const { return (height + kOutputSide - 1) / kOutputSide; }
  int64_t across() const { return (width + kOutputSide - 1) / kOutputSide; }
  int64_t count() const { return images * down() * across(); }
  // Of a tile's first result.
  Place at(int64_t tile) const {
    const int64_t row = tile / across();
    return {row / down(), row % down() * kOutputSide, tile % across() * kOutputSide};
  }
};

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

// The distance between elements of a chunk's transformed tiles. Not a power of two: all elements would then compete for
// the same few cache lines.
constexpr int64_t large_step(int64_t tiles, int64_t channels) { return tiles * channels + kLane; }

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

  int64_t inputs, padded;  // padded: outputs, to whole lanes
  Scratch values;
};

// The products of a chunk: of element e of all inputs at v[e * v_step + t * v_tile_step], to `padded` numbers at
// m[e * m_step + t * padded].
void multiply_tiles(int64_t tiles, const float* v, int64_t v_tile_step, int64_t v_step, const LargeWeights& weights,
                    float* m, int64_t m_step);

}  // namespace andfast::cpu
