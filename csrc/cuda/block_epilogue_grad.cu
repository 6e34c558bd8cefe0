// Backward pass of a block's epilogue (block_epilogue.cu): from the gradient of y to those of z, the slope and the
// noise.
#include "sum_rows.cuh"
#include "tile.cuh"

namespace andfast::cuda {
namespace {

// A thread block handles one tile of `per_split` of a network's images, and sums over those. The split depends on the
// shape alone, so the rounding of the sums does, too.
struct Plan {
  int tiles, splits, per_split;

  explicit Plan(BlockShape shape) : tiles(cuda::tiles(shape)) {
    constexpr int64_t kBlocks = 1024;  // enough to keep the largest GPU busy
    const int images = shape.images_per_network();
    const int64_t wanted = (kBlocks - 1) / (int64_t(tiles) * shape.networks) + 1;
    per_split = ceil_div(images, wanted < images ? wanted : images);
    splits = ceil_div(images, per_split);
  }

  int64_t parts() const { return int64_t(tiles) * splits; }  // partial sums a network
};

// The sum of a block's values, in a fixed order, for its first warp.
__device__ float sum_block(float value, float* shared) {
  const int threads = blockDim.x * blockDim.y, self = thread_index();
  __syncthreads();
  shared[self] = value;
  __syncthreads();
  if (self >= 32) return 0;
  float sum = 0;
  for (int i = self; i < threads; i += 32) sum += shared[i];
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
  return sum;
}

// dslope_parts: (networks, splits, tiles). dnoise_parts: (networks, splits, pixels) for a map, and for strengths
// (networks, splits, tiles, channels).
template <bool kFull, typename T>
__global__ void __launch_bounds__(kThreads)
    epilogue_grad_kernel(const T* __restrict__ dy, const T* __restrict__ y, const uint8_t* __restrict__ sign_mask,
                         const float* __restrict__ slopes_minus_one, Noise noise, T* __restrict__ dz,
                         float* __restrict__ dslope_parts, float* __restrict__ dnoise_parts, BlockShape shape,
                         int border, Plan plan) {
  constexpr int kBatch = kAtOnce<kFull, T>;
  __shared__ float shared[8 * kThreads];
  const int pixels = shape.pixels(), bytes = blockDim.x, tile_pixels = kItems * blockDim.y;
  const int tile = blockIdx.x % plan.tiles, part = blockIdx.x / plan.tiles;
  const int split = part % plan.splits, network = part / plan.splits;
  const int first = tile * tile_pixels;
  const int channel = 8 * threadIdx.x, left = shape.channels - channel;
  const int group = shape.images_per_network();
  const int64_t bordered_height = shape.height + 2 * border, bordered_width = shape.width + 2 * border;
  const float slope_minus_one = slopes_minus_one[network];

  Vec8<float> strength;
  if (noise.seeds) strength = load<false>(noise.values + network * shape.channels + channel, left);

  float slope_sum = 0, pixel_sums[kItems] = {}, channel_sums[8] = {};
  const int end = min((split + 1) * plan.per_split, group);
  for (int in_group = split * plan.per_split; in_group < end; ++in_group) {
    const int image = network * group + in_group;
    if (noise.seeds) {
      __syncthreads();
      draw_field(shared, noise.seeds[network], noise.layer, in_group, first);
      __syncthreads();
    }

#pragma unroll
    for (int start = 0; start < kItems; start += kBatch) {
      Vec8<T> dy_vecs[kBatch], y_vecs[kBatch];
      uint8_t sign_bytes[kBatch];
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        const int pixel = min(first + (start + k) * int(blockDim.y) + int(threadIdx.y), pixels - 1);
        const int h = pixel / shape.width, w = pixel - h * shape.width;
        const int64_t place = (image * bordered_height + h + border) * bordered_width + w + border;
        dy_vecs[k] = load<kFull>(dy + place * shape.channels + channel, left);
        y_vecs[k] = load<kFull>(y + place * shape.channels + channel, left);
        sign_bytes[k] = sign_mask[(int64_t(image) * pixels + pixel) * bytes + threadIdx.x];
      }

#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        const int in_tile = (start + k) * blockDim.y + threadIdx.y;
        const int pixel = first + in_tile;
        if (pixel >= pixels) break;
        float grad[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) grad[i] = dy_vecs[k][i];

        const int h = pixel / shape.width, w = pixel - h * shape.width;
        const Copies rows = copies(h, shape.height, border), columns = copies(w, shape.width, border);
        for (int row = rows.first; row <= rows.last; ++row) {  // the border's gradients are added to the edge's
          for (int column = columns.first; column <= columns.last; ++column) {
            if (row == h + border && column == w + border) continue;
            const int64_t place = (image * bordered_height + row) * bordered_width + column;
            const Vec8<T> more = load<kFull>(dy + place * shape.channels + channel, left);
#pragma unroll
            for (int i = 0; i < 8; ++i) grad[i] += more[i];
          }
        }

        const float shared_noise = noise.seeds ? shared[in_tile] : noise.values[int64_t(network) * pixels + pixel];
        float dz_values[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const bool negative = sign_bytes[k] >> i & 1;
          const float added = noise.seeds ? strength[i] * shared_noise : shared_noise;
          dz_values[i] = grad[i] * block_epilogue_slope(negative, slope_minus_one);
          slope_sum += negative ? grad[i] * (y_vecs[k][i] - added) : 0.0f;
          if (noise.seeds) {
            channel_sums[i] += grad[i] * shared_noise;
          } else {
            pixel_sums[start + k] += grad[i];
          }
        }
        store<kFull>(dz + (int64_t(image) * pixels + pixel) * shape.channels + channel, rounded<T>(dz_values), left);
      }
    }
  }

  const float block_sum = sum_block(slope_sum, shared);
  if (thread_index() == 0) dslope_parts[blockIdx.x] = block_sum;

  __syncthreads();
  if (noise.seeds) {  // over pixels
    const int channels = 8 * blockDim.x;
#pragma unroll
    for (int i = 0; i < 8; ++i) shared[threadIdx.y * channels + channel + i] = channel_sums[i];
    __syncthreads();
    for (int c = thread_index(); c < shape.channels; c += blockDim.x * blockDim.y) {
      float sum = 0;
      for (int i = 0; i < blockDim.y; ++i) sum += shared[i * channels + c];
      dnoise_parts[int64_t(blockIdx.x) * shape.channels + c] = sum;
    }
  } else {  // over channels
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      shared[(k * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x] = pixel_sums[k];
    }
    __syncthreads();
    for (int i = thread_index(); i < tile_pixels; i += blockDim.x * blockDim.y) {
      if (first + i >= pixels) break;
      float sum = 0;
      for (int vec = 0; vec < blockDim.x; ++vec) sum += shared[i * blockDim.x + vec];
      dnoise_parts[int64_t(part) * pixels + first + i] = sum;
    }
  }
}

}  // namespace

int64_t block_epilogue_grad_scratch(BlockShape shape, bool gaussian) {
  if (int64_t(shape.images) * shape.pixels() * shape.channels == 0) return 0;
  const Plan plan(shape);
  const int64_t noise = gaussian ? plan.parts() * shape.channels : int64_t(plan.splits) * shape.pixels();
  return shape.networks * (plan.parts() + noise);
}

void block_epilogue_grad(Type type, const void* dy, const void* y, const uint8_t* sign_mask,
                         const float* slope_minus_one, Noise noise, void* dz, float* dslope, float* dnoise,
                         float* scratch, BlockShape shape, int border, cudaStream_t stream) {
  const bool gaussian = noise.seeds != nullptr;
  if (int64_t(shape.images) * shape.pixels() * shape.channels == 0) {
    // Sums over nothing.
    cudaMemsetAsync(dslope, 0, sizeof(float) * shape.networks, stream);
    const int64_t count = gaussian ? shape.channels : shape.pixels();
    cudaMemsetAsync(dnoise, 0, sizeof(float) * shape.networks * count, stream);
    return;
  }
  const Plan plan(shape);
  const bool one_part = !gaussian && plan.splits == 1;  // which is then the whole sum
  float* const dslope_parts = scratch;
  float* const dnoise_parts = one_part ? dnoise : scratch + shape.networks * plan.parts();
  dispatch(type, [&](auto element) {
    using T = typename decltype(element)::type;
    dispatch_full(
        shape.channels,
        [&](auto full) {
          launch(epilogue_grad_kernel<decltype(full)::value, T>, dim3(shape.networks * plan.parts()),
                 vec8_block(shape.channels), stream, static_cast<const T*>(dy), static_cast<const T*>(y), sign_mask,
                 slope_minus_one, noise, static_cast<T*>(dz), dslope_parts, dnoise_parts, shape, border, plan);
        },
        dy, y, dz);
  });
  sum_rows(dslope_parts, slope_minus_one, dslope, shape.networks, plan.parts(), 1, stream);
  if (gaussian) {
    sum_rows(dnoise_parts, nullptr, dnoise, shape.networks, plan.parts(), shape.channels, stream);
  } else if (!one_part) {
    sum_rows(dnoise_parts, nullptr, dnoise, shape.networks, plan.splits, shape.pixels(), stream);
  }
}

}  // namespace andfast::cuda
