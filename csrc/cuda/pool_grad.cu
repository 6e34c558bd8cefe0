// Backward pass of the anti-aliased pooling, and of the block before it: every pixel gathers from the outputs that read
// it, four at most.
#include "vec8.cuh"

namespace andfast::cuda {
namespace {

// dz has the larger size. `sign_mask` is null for the pooling of an image without a block.
template <bool kFull, typename T>
__global__ void __launch_bounds__(kThreads)
    pool_grad_kernel(const T* __restrict__ dpooled, const uint8_t* __restrict__ sign_mask,
                     const float* __restrict__ slopes_minus_one, T* __restrict__ dz, BlockShape shape, int scale,
                     int tiles) {
  const int image = blockIdx.x / tiles;
  const int pixel = blockIdx.x % tiles * blockDim.y + threadIdx.y;
  if (pixel >= shape.pixels()) return;
  const int channel = 8 * threadIdx.x, left = shape.channels - channel;
  const int h = pixel / shape.width, w = pixel - h * shape.width;
  const int height = shape.height / scale, width = shape.width / scale;
  const Readers rows = readers(h, shape.height, scale), columns = readers(w, shape.width, scale);

  float grad[8] = {};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float weight = rows.weight[i] * columns.weight[j];
      if (weight == 0) continue;
      const int64_t place = (int64_t(image) * height + rows.first + i) * width + columns.first + j;
      const Vec8<T> vec = load<kFull>(dpooled + place * shape.channels + channel, left);
#pragma unroll
      for (int c = 0; c < 8; ++c) grad[c] += weight * vec[c];
    }
  }

  const int64_t place = int64_t(image) * shape.pixels() + pixel;
  if (sign_mask) {
    const uint8_t negative = sign_mask[place * blockDim.x + threadIdx.x];
    const float slope_minus_one = slopes_minus_one[image / shape.images_per_network()];
#pragma unroll
    for (int c = 0; c < 8; ++c) grad[c] *= block_epilogue_slope(negative >> c & 1, slope_minus_one);
  }
  store<kFull>(dz + place * shape.channels + channel, rounded<T>(grad), left);
}

}  // namespace

void block_epilogue_pool_grad(Type type, const void* dpooled, const uint8_t* sign_mask, const float* slope_minus_one,
                              void* dz, BlockShape shape, int scale, cudaStream_t stream) {
  if (int64_t(shape.images) * shape.pixels() * shape.channels == 0) return;
  const dim3 block = vec8_block(shape.channels);
  const int tiles = ceil_div(shape.pixels(), block.y);
  dispatch(type, [&](auto element) {
    using T = typename decltype(element)::type;
    dispatch_full(
        shape.channels,
        [&](auto full) {
          launch(pool_grad_kernel<decltype(full)::value, T>, dim3(shape.images * tiles), block, stream,
                 static_cast<const T*>(dpooled), sign_mask, slope_minus_one, static_cast<T*>(dz), shape, scale, tiles);
        },
        dpooled, dz);
  });
}

void blur_pool_grad(Type type, const void* dpooled, void* dimage, BlockShape shape, int scale, cudaStream_t stream) {
  block_epilogue_pool_grad(type, dpooled, nullptr, nullptr, dimage, shape, scale, stream);
}

}  // namespace andfast::cuda
