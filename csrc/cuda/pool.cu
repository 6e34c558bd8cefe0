// The anti-aliased pooling, of an image or of a block's output that is never stored.
#include "vec8.cuh"

namespace andfast::cuda {
namespace {

constexpr int kStrip = 4;  // output rows that a thread walks down: they share the rows where their windows overlap

// Pooling is linear, so a block's output z + slope_minus_one min(z, 0) + noise is pooled part by part: z and min(z, 0)
// are read (b may be null) and summed, and the noise is already pooled.
template <typename T>
struct BlockSource {
  static constexpr int kParts = 2;
  const T *a, *b;
  uint8_t* sign_mask;
  const float *slopes_minus_one, *noise, *strength;
  T *pooled, *negative;
};

template <typename T>
struct ImageSource {
  static constexpr int kParts = 1;
  const T* a;
  T* pooled;
};

// kScale: the scale where it is known when compiling, otherwise 0.
template <bool kFull, int kScale, typename T, template <typename> typename Source>
__global__ void __launch_bounds__(kThreads, kFull ? 2 : 1)
    pool_kernel(Source<T> source, BlockShape shape, int any_scale, int border, int strips, int column_tiles) {
  constexpr int kParts = Source<T>::kParts;
  constexpr bool kBlock = kParts == 2;
  const int scale = kScale ? kScale : any_scale;
  const int height = shape.height / scale, width = shape.width / scale;
  const int image = blockIdx.x / (strips * column_tiles);
  const int strip = blockIdx.x / column_tiles % strips;
  const int column = blockIdx.x % column_tiles * blockDim.y + threadIdx.y;
  if (column >= width) return;
  const int channel = 8 * threadIdx.x, left = shape.channels - channel;
  const int first_row = strip * kStrip, end_row = min(first_row + kStrip, height);
  const int64_t image_pixels = int64_t(image) * shape.pixels();
  const T* const a_image = source.a + image_pixels * shape.channels + channel;  // offsets in an image fit 32 bits

  // Sums over the rows of this output row's window, and of the next one's.
  float sums[kParts][8] = {}, next_sums[kParts][8] = {};
  for (int row = first_row; row < end_row; ++row) {
#pragma unroll 1
    for (int tap = row == first_row ? 0 : 2; tap < scale + 2; ++tap) {
      const int from_row = scale * row + tap - 1;
      const bool own_row = from_row >= scale * first_row && from_row < scale * end_row;
      const int row_pixels = int(reflect(from_row, shape.height)) * shape.width;
      float row_sums[kParts][8] = {};
#pragma unroll(kScale == 0 ? 1 : sizeof(T) == 2 ? kScale + 2 : 2)
      for (int i = 0; i < scale + 2; ++i) {
        const int pixel = row_pixels + int(reflect(scale * column + i - 1, shape.width));
        const int offset = pixel * shape.channels;
        const float weight = pooling_tap(i, scale);
        const Vec8<T> a = load<kFull>(a_image + offset, left);
        if constexpr (kBlock) {
          Vec8<T> b;
          if (source.b) b = load<kFull>(source.b + image_pixels * shape.channels + channel + offset, left);
          unsigned negative = 0;
#pragma unroll
          for (int c = 0; c < 8; ++c) {
            const float z = source.b ? a[c] + b[c] : a[c];
            negative |= unsigned(z < 0) << c;
            row_sums[0][c] += weight * z;
            row_sums[1][c] += weight * (z < 0 ? z : 0.0f);
          }
          if (own_row && i >= 1 && i <= scale) {
            source.sign_mask[(image_pixels + pixel) * blockDim.x + threadIdx.x] = uint8_t(negative);
          }
        } else {
#pragma unroll
          for (int c = 0; c < 8; ++c) row_sums[0][c] += weight * a[c];
        }
      }
      const float weight = pooling_tap(tap, scale);
      const float next_weight = tap >= scale ? pooling_tap(tap - scale, scale) : 0.0f;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
#pragma unroll
        for (int c = 0; c < 8; ++c) {
          sums[part][c] += weight * row_sums[part][c];
          if (tap >= scale) next_sums[part][c] += next_weight * row_sums[part][c];
        }
      }
    }

    const int64_t pixel = (int64_t(image) * height + row) * width + column;
    if constexpr (kBlock) {
      store<kFull>(source.negative + pixel * shape.channels + channel, rounded<T>(sums[1]), left);
      const int network = image / shape.images_per_network();
      const float slope_minus_one = source.slopes_minus_one[network];
      const float noise =
          source.strength ? source.noise[pixel] : source.noise[(int64_t(network) * height + row) * width + column];
      Vec8<float> strength;
      if (source.strength) strength = load<false>(source.strength + network * shape.channels + channel, left);
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        sums[0][c] += slope_minus_one * sums[1][c] + (source.strength ? strength[c] * noise : noise);
      }
    }
    const Vec8<T> vec = rounded<T>(sums[0]);
    const Copies rows = copies(row, height, border), columns = copies(column, width, border);
    const int64_t bordered_height = height + 2 * border, bordered_width = width + 2 * border;
    for (int y = rows.first; y <= rows.last; ++y) {
      for (int x = columns.first; x <= columns.last; ++x) {
        const int64_t place = (image * bordered_height + y) * bordered_width + x;
        store<kFull>(source.pooled + place * shape.channels + channel, vec, left);
      }
    }

#pragma unroll
    for (int part = 0; part < kParts; ++part) {
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        sums[part][c] = next_sums[part][c];
        next_sums[part][c] = 0;
      }
    }
  }
}

// Every scale of the degradation network has its own kernel with unrolled loops, for full Vec8s only.
template <typename T, template <typename> typename Source, typename... Pointers>
void pool(const Source<T>& source, BlockShape shape, int scale, int border, cudaStream_t stream, Pointers... pointers) {
  const dim3 block = vec8_block(shape.channels);
  const int strips = ceil_div(shape.height / scale, kStrip);
  const int column_tiles = ceil_div(shape.width / scale, block.y);
  const auto run = [&](auto kernel) {
    launch(kernel, dim3(shape.images * strips * column_tiles), block, stream, source, shape, scale, border, strips,
           column_tiles);
  };
  dispatch_full(
      shape.channels,
      [&](auto full) {
        if constexpr (decltype(full)::value) {
          switch (scale) {
            case 2:
              return run(pool_kernel<true, 2, T, Source>);
            case 3:
              return run(pool_kernel<true, 3, T, Source>);
            case 4:
              return run(pool_kernel<true, 4, T, Source>);
            default:
              return run(pool_kernel<true, 0, T, Source>);
          }
        } else {
          run(pool_kernel<false, 0, T, Source>);
        }
      },
      pointers...);
}

bool empty(BlockShape shape) { return int64_t(shape.images) * shape.pixels() * shape.channels == 0; }

}  // namespace

void block_epilogue_pool(Type type, const void* a, const void* b, const float* slope_minus_one,
                         const float* pooled_noise, const float* strength, void* pooled, void* negative,
                         uint8_t* sign_mask, BlockShape shape, int scale, int border, cudaStream_t stream) {
  if (empty(shape)) return;
  dispatch(type, [&](auto element) {
    using T = typename decltype(element)::type;
    const BlockSource<T> source = {
        static_cast<const T*>(a), static_cast<const T*>(b), sign_mask, slope_minus_one, pooled_noise, strength,
        static_cast<T*>(pooled),  static_cast<T*>(negative)};
    pool(source, shape, scale, border, stream, a, b, static_cast<const void*>(pooled),
         static_cast<const void*>(negative));
  });
}

void blur_pool(Type type, const void* image, void* pooled, BlockShape shape, int scale, cudaStream_t stream) {
  if (empty(shape)) return;
  dispatch(type, [&](auto element) {
    using T = typename decltype(element)::type;
    const ImageSource<T> source = {static_cast<const T*>(image), static_cast<T*>(pooled)};
    pool(source, shape, scale, 0, stream, image, static_cast<const void*>(pooled));
  });
}

}  // namespace andfast::cuda
