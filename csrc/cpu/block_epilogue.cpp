// A block's epilogue after its convolution, in one pass: LeakyReLU, noise, the sign mask for the backward pass, and the
// border for the next convolution; and its backward pass. andfast/ops/backends/library.py says what each operator
// computes.
#include <algorithm>
#include <vector>

#include "rows.h"

namespace andfast::cpu {
namespace {

// One row of pixels. The noise of channel c of pixel w is strength[c] * noise[w]; a map has strengths of one.
// `negative` is scratch, one byte per channel and 8 more.
template <bool kTwo, typename T>
ANDFAST_BODY void epilogue_row_body(const T* a, const T* b, const float* strength, const float* noise,
                                    float slope_minus_one, T* y, uint8_t* sign_mask, uint8_t* negative, int64_t width,
                                    int64_t channels) {
  const int64_t bytes = sign_bytes(channels);
  for (int64_t w = 0; w < width; ++w, a += channels, b += kTwo ? channels : 0, y += channels, sign_mask += bytes) {
    const float field = noise[w];
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const float z = kTwo ? load(a[c]) + load(b[c]) : load(a[c]);
      store(y[c], andfast::block_epilogue(z, slope_minus_one, strength[c] * field));
      negative[c] = z < 0;
    }
    for (int64_t i = 0; i < bytes; ++i) sign_mask[i] = pack_bits(negative + 8 * i);
  }
}

ANDFAST_CLONES void epilogue_row(const float* a, const float* b, const float* strength, const float* noise,
                                 float slope_minus_one, float* y, uint8_t* sign_mask, uint8_t* negative, int64_t width,
                                 int64_t channels) {
  if (b) {
    epilogue_row_body<true>(a, b, strength, noise, slope_minus_one, y, sign_mask, negative, width, channels);
  } else {
    epilogue_row_body<false>(a, b, strength, noise, slope_minus_one, y, sign_mask, negative, width, channels);
  }
}
ANDFAST_CLONES void epilogue_row(const bfloat16* a, const bfloat16* b, const float* strength, const float* noise,
                                 float slope_minus_one, bfloat16* y, uint8_t* sign_mask, uint8_t* negative,
                                 int64_t width, int64_t channels) {
  if (b) {
    epilogue_row_body<true>(a, b, strength, noise, slope_minus_one, y, sign_mask, negative, width, channels);
  } else {
    epilogue_row_body<false>(a, b, strength, noise, slope_minus_one, y, sign_mask, negative, width, channels);
  }
}

// The contribution of one row to the gradients of the slope and the noise.
struct RowGrad {
  float slope_minus_one;
  float* strength;  // (channels), added to: the sum over pixels of dy * noise[w]; null for a map
  float* map;       // (width), added to: the sum over channels of dy; null for strengths
};

// One row of the gradient, its border already folded in. `grad` is (width, channels) float32; y starts at the row's
// first pixel that is not border. `negative` is scratch: eight bytes for each byte of the sign mask.
template <typename T>
ANDFAST_BODY void epilogue_grad_row_body(const float* grad, const T* y, const uint8_t* sign_mask, const float* strength,
                                         const float* noise, float slope_minus_one, T* dz, uint8_t* negative,
                                         RowGrad& sums, int64_t width, int64_t channels) {
  const int64_t bytes = sign_bytes(channels);
  unpack_row(sign_mask, negative, width * bytes);
  float slope_sum = 0;
  for (int64_t w = 0; w < width; ++w, grad += channels, y += channels, dz += channels, negative += 8 * bytes) {
    const float field = noise[w];
    float map_sum = 0;
#pragma omp simd reduction(+ : slope_sum, map_sum)
    for (int64_t c = 0; c < channels; ++c) {
      const float g = grad[c];
      const float counts = negative[c];  // 0 or 1: arithmetic, because a select would not be vectorised
      store(dz[c], g + g * slope_minus_one * counts);
      slope_sum += counts * (g * (load(y[c]) - strength[c] * field));
      map_sum += g;
    }
    if (sums.map) {
      sums.map[w] += map_sum;
    } else {
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) sums.strength[c] += grad[c] * field;
    }
  }
  sums.slope_minus_one = slope_sum * inverse_slope(slope_minus_one);
}

ANDFAST_CLONES void epilogue_grad_row(const float* grad, const float* y, const uint8_t* sign_mask,
                                      const float* strength, const float* noise, float slope_minus_one, float* dz,
                                      uint8_t* negative, RowGrad& sums, int64_t width, int64_t channels) {
  epilogue_grad_row_body(grad, y, sign_mask, strength, noise, slope_minus_one, dz, negative, sums, width, channels);
}
ANDFAST_CLONES void epilogue_grad_row(const float* grad, const bfloat16* y, const uint8_t* sign_mask,
                                      const float* strength, const float* noise, float slope_minus_one, bfloat16* dz,
                                      uint8_t* negative, RowGrad& sums, int64_t width, int64_t channels) {
  epilogue_grad_row_body(grad, y, sign_mask, strength, noise, slope_minus_one, dz, negative, sums, width, channels);
}

ANDFAST_CLONES void widen(const float* from, float* to, int64_t count) { std::copy(from, from + count, to); }
ANDFAST_CLONES void widen(const bfloat16* from, float* to, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) to[i] = load(from[i]);
}
ANDFAST_CLONES void add(const float* from, float* to, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) to[i] += from[i];
}
ANDFAST_CLONES void add(const bfloat16* from, float* to, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) to[i] += load(from[i]);
}

// Adds the border's gradients to an image's row h, (width, channels). `bordered` is the whole image with its border.
template <typename T>
void fold_row(const T* bordered, float* row, int64_t h, int64_t height, int64_t width, int64_t channels) {
  for (int64_t from = (h == 0 ? 0 : h + 1); from <= (h == height - 1 ? height + 1 : h + 1); ++from) {
    const T* source = bordered + from * (width + 2) * channels;
    if (from != h + 1) add(source + channels, row, width * channels);
    add(source, row, channels);
    add(source + (width + 1) * channels, row + (width - 1) * channels, channels);
  }
}

}  // namespace

template <typename T>
void block_epilogue(const T* a, const T* b, const float* slope_minus_one, Noise noise, T* y, uint8_t* sign_mask,
                    BlockShape shape, int64_t border, ParallelFor parallel_for) {
  const int64_t height = shape.height, width = shape.width, channels = shape.channels;
  const int64_t row = width * channels, bordered_row = (width + 2 * border) * channels;
  const int64_t bordered_image = (height + 2 * border) * bordered_row;
  parallel_for(shape.images * height, 1, [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> negative(channels + 8);
    NoiseRows rows(noise, shape);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / height, h = i % height;
      rows.seek(image, h);
      T* out = y + image * bordered_image + (h + border) * bordered_row;
      epilogue_row(a + i * row, b ? b + i * row : nullptr, rows.strength, rows.noise, slope_minus_one[rows.network],
                   out + border * channels, sign_mask + i * width * sign_bytes(channels), negative.data(), width,
                   channels);
      if (border) replicate_row(out, h, height, width, channels);
    }
  });
}

template <typename T>
void block_epilogue_grad(const T* dy, const T* y, const uint8_t* sign_mask, const float* slope_minus_one, Noise noise,
                         T* dz, float* dslope, float* dnoise, BlockShape shape, int64_t border,
                         ParallelFor parallel_for) {
  const int64_t networks = shape.networks, height = shape.height, width = shape.width, channels = shape.channels;
  const int64_t row = width * channels, bordered_row = (width + 2 * border) * channels;
  const int64_t bordered_image = (height + 2 * border) * bordered_row;
  const int64_t group = networks ? shape.images / networks : 0;

  // One task handles row h of all images of a network, so sums over images do not depend on the order of threads.
  std::vector<double> slopes_minus_one(networks * height);
  std::vector<float> strengths(noise.seeds ? networks * height * channels : 0);
  parallel_for(networks * height, 1, [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> negative(width * sign_bytes(channels) * 8);
    std::vector<float> grad(row);
    NoiseRows rows(noise, shape);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t network = i / height, h = i % height;
      RowGrad sums = {0, noise.seeds ? &strengths[i * channels] : nullptr, noise.seeds ? nullptr : dnoise + i * width};
      if (sums.map) std::fill(sums.map, sums.map + width, 0.0f);
      for (int64_t image = network * group; image < (network + 1) * group; ++image) {
        const T* from = dy + image * bordered_image;
        widen(from + (h + border) * bordered_row + border * channels, grad.data(), row);
        if (border) fold_row(from, grad.data(), h, height, width, channels);
        rows.seek(image, h);
        const int64_t pixel = (image * height + h) * width;
        epilogue_grad_row(grad.data(), y + image * bordered_image + (h + border) * bordered_row + border * channels,
                          sign_mask + pixel * sign_bytes(channels), rows.strength, rows.noise, slope_minus_one[network],
                          dz + pixel * channels, negative.data(), sums, width, channels);
        slopes_minus_one[i] += sums.slope_minus_one;
      }
    }
  });
  for (int64_t network = 0; network < networks; ++network) {
    double sum = 0;
    for (int64_t h = 0; h < height; ++h) sum += slopes_minus_one[network * height + h];
    dslope[network] = float(sum);
    if (!noise.seeds) continue;
    for (int64_t c = 0; c < channels; ++c) {
      double total = 0;
      for (int64_t h = 0; h < height; ++h) total += strengths[(network * height + h) * channels + c];
      dnoise[network * channels + c] = float(total);
    }
  }
}

#define INSTANTIATE(T)                                                                                           \
  template void block_epilogue(const T*, const T*, const float*, Noise, T*, uint8_t*, BlockShape, int64_t,       \
                               ParallelFor);                                                                     \
  template void block_epilogue_grad(const T*, const T*, const uint8_t*, const float*, Noise, T*, float*, float*, \
                                    BlockShape, int64_t, ParallelFor);
INSTANTIATE(float)
INSTANTIATE(bfloat16)

}  // namespace andfast::cpu
