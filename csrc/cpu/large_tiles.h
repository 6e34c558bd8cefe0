// Images in and out of the large tiles of Winograd's F(6 x 6, 3 x 3), and the products between: 64 for 36 results of a
// 3x3 convolution instead of 324 (Lavin and Gray, 2016). float32, and nothing but the result is kept.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "kernels.h"
#include "product.h"

namespace andfast::cpu {

constexpr int64_t kSide = 6, kReach = kSide + 2;  // results and pixels of a tile, along a side
constexpr int64_t kLargeElements = kReach * kReach;

// Memory for numbers. Where it is much it is in large pages, if the system has some: what is read of transformed tiles
// at a time lies in more small ones than the processor finds quickly. It goes back to the system at once.
class Scratch {
 public:
  explicit Scratch(int64_t count);
  ~Scratch();
  Scratch(Scratch&& other) noexcept
      : little_(std::move(other.little_)), mapped_(std::exchange(other.mapped_, nullptr)), bytes_(other.bytes_),
        numbers_(other.numbers_) {}
  float* get() const { return numbers_; }

 private:
  std::unique_ptr<float[]> little_;
  void* mapped_ = nullptr;
  int64_t bytes_ = 0;  // that are mapped
  float* numbers_;
};

// The tiles of the results of some images, numbered image by image and row by row.
struct LargeTiling {
  int64_t images, height, width;  // of the results

  struct Place {
    int64_t image, h, w;
  };

  int64_t down() const { return (height + kSide - 1) / kSide; }
  int64_t across() const { return (width + kSide - 1) / kSide; }
  int64_t count() const { return images * down() * across(); }
  // Of a tile's first result.
  Place at(int64_t tile) const {
    const int64_t row = tile / across();
    return {row / down(), row % down() * kSide, tile % across() * kSide};
  }
};

// Rows of pixels, `held` of them at a time: where row h of an image would be, row h + held is, too. Images that are
// held as a whole are the same with `held` no smaller than all their rows.
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

// What a convolution reads: each pixel stands for repeat x repeat of them.
struct Source {
  Rows<const float> pixels;
  int64_t repeat = 1;

  const float* row(int64_t image, int64_t h) const { return pixels.at(image, h / repeat); }
  int64_t column(int64_t w) const { return w / repeat * pixels.channels; }
};

// Tiles that are worked on together, neighbours by number.
struct Chunk {
  int64_t first, count;
};

// How far apart the elements of a chunk's transformed tiles lie: not a power of two, or all of them would fall into the
// same few lines of the caches.
constexpr int64_t large_step(int64_t tiles, int64_t channels) { return tiles * channels + kLane; }

// Writes B^T d B of the pixels that each tile reads: element e of channel c of tile t to
// v[e * step + t * tile_step + c]. Pixels outside of the image are zero.
void enter_tiles(const LargeTiling& tiling, Chunk chunk, const Source& source, float* v, int64_t tile_step,
                 int64_t step);

// What becomes of results: LeakyReLU(z + bias) where there is a slope, else residual + gain (z + bias) where there is a
// residual. `bias` and `slope` are a number a channel.
struct LargeTail {
  const float* bias;
  const float* slope;
  const Rows<const float>* residual;
  float gain;
};

// The way back, A^T m A of element e of channel c of tile t at m[e * step + t * tile_step + c], and to the pixels.
void leave_tiles(const LargeTiling& tiling, Chunk chunk, const float* m, int64_t tile_step, int64_t step,
                 const Rows<float>& results, const LargeTail& tail);

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
