// How the kernels around a block's epilogue divide an image: a thread block handles a tile of kItems * blockDim.y
// pixels in a row, a thread kItems pixels of it, blockDim.y apart, and loads several of those at once.
#pragma once

#include "vec8.cuh"

namespace andfast::cuda {

constexpr int kItems = 4;  // a multiple of four: tiles then begin where a draw of the Gaussian field does

// How many of them at once: 64 bytes, where each Vec8 is a few accesses of 16 bytes.
template <bool kFull, typename T>
constexpr int kAtOnce = kFull ? 64 / int(sizeof(Vec8<T>)) : 1;

inline int tiles(BlockShape shape) { return ceil_div(shape.pixels(), kItems * vec8_block(shape.channels).y); }

__device__ __forceinline__ int thread_index() { return threadIdx.y * blockDim.x + threadIdx.x; }

// The Gaussian field of a tile, drawn once for all of its channels. For all threads of a block; the caller
// synchronises.
__device__ __forceinline__ void draw_field(float* field, int64_t seed, uint32_t layer, int image, int first_pixel) {
  const int quads = kItems * blockDim.y / 4;
  for (int i = thread_index(); i < quads; i += blockDim.x * blockDim.y) {
    gaussian_quad(uint64_t(seed), layer, image, first_pixel / 4 + i, field + 4 * i);
  }
}

}  // namespace andfast::cuda
