// A block's epilogue after its convolution, in one pass: LeakyReLU, noise, the sign mask for the backward pass, and the
// border for the next convolution.
#include "tile.cuh"

namespace andfast::cuda {
namespace {

template <bool kFull, typename T>
__global__ void __launch_bounds__(kThreads, 2)
    epilogue_kernel(const T* __restrict__ a, const T* __restrict__ b, const float* __restrict__ slopes_minus_one,
                    Noise noise, T* __restrict__ y, uint8_t* __restrict__ sign_mask, BlockShape shape, int border,
                    int tiles) {
  constexpr int kBatch = kAtOnce<kFull, T>;
  __shared__ float field[kItems * kThreads];
  const int pixels = shape.pixels(), bytes = blockDim.x;
  const int image = blockIdx.x / tiles;
  const int first = blockIdx.x % tiles * kItems * blockDim.y;
  const int network = image / shape.images_per_network();
  const int channel = 8 * threadIdx.x, left = shape.channels - channel;
  const float slope_minus_one = slopes_minus_one[network];
  const int64_t image_offset = int64_t(image) * pixels * shape.channels + channel;

  Vec8<float> strength;
  if (noise.seeds) {
    draw_field(field, noise.seeds[network], noise.layer, image % shape.images_per_network(), first);
    strength = load<false>(noise.values + network * shape.channels + channel, left);
    __syncthreads();
  }

#pragma unroll
  for (int start = 0; start < kItems; start += kBatch) {
    Vec8<T> a_vecs[kBatch], b_vecs[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      // Past the end, read the last pixel again: a branch would split the loads.
      const int pixel = min(first + (start + k) * int(blockDim.y) + int(threadIdx.y), pixels - 1);
      const int64_t offset = image_offset + pixel * shape.channels;
      a_vecs[k] = load<kFull>(a + offset, left);
      if (b) b_vecs[k] = load<kFull>(b + offset, left);
    }

#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const int in_tile = (start + k) * blockDim.y + threadIdx.y;
      const int pixel = first + in_tile;
      if (pixel >= pixels) break;
      const float shared_noise = noise.seeds ? field[in_tile] : noise.values[int64_t(network) * pixels + pixel];
      float values[8];
      unsigned negative = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float z = b ? a_vecs[k][i] + b_vecs[k][i] : a_vecs[k][i];
        values[i] =
            andfast::block_epilogue(z, slope_minus_one, noise.seeds ? strength[i] * shared_noise : shared_noise);
        negative |= unsigned(z < 0) << i;
      }
      sign_mask[(int64_t(image) * pixels + pixel) * bytes + threadIdx.x] = uint8_t(negative);

      const Vec8<T> vec = rounded<T>(values);
      if (border == 0) {
        store<kFull>(y + image_offset + pixel * shape.channels, vec, left);
        continue;
      }
      const int h = pixel / shape.width, w = pixel - h * shape.width;
      const Copies rows = copies(h, shape.height, border), columns = copies(w, shape.width, border);
      const int64_t bordered_height = shape.height + 2 * border, bordered_width = shape.width + 2 * border;
      for (int row = rows.first; row <= rows.last; ++row) {
        for (int column = columns.first; column <= columns.last; ++column) {
          const int64_t place = (image * bordered_height + row) * bordered_width + column;
          store<kFull>(y + place * shape.channels + channel, vec, left);
        }
      }
    }
  }
}

}  // namespace

void block_epilogue(Type type, const void* a, const void* b, const float* slope_minus_one, Noise noise, void* y,
                    uint8_t* sign_mask, BlockShape shape, int border, cudaStream_t stream) {
  if (int64_t(shape.images) * shape.pixels() * shape.channels == 0) return;
  dispatch(type, [&](auto element) {
    using T = typename decltype(element)::type;
    dispatch_full(
        shape.channels,
        [&](auto full) {
          launch(epilogue_kernel<decltype(full)::value, T>, dim3(shape.images * tiles(shape)),
                 vec8_block(shape.channels), stream, static_cast<const T*>(a), static_cast<const T*>(b),
                 slope_minus_one, noise, static_cast<T*>(y), sign_mask, shape, border, tiles(shape));
        },
        a, b, y);
  });
}

}  // namespace andfast::cuda
