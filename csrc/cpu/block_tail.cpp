// What comes after a block's convolution, in one pass: LeakyReLU, noise, the signs for the backward pass and the
// border for the next convolution; and the way back. andfast/ops/block_tail.py says what each operator computes.
#include <algorithm>
#include <vector>

#include "rows.h"

namespace andfast::cpu {
namespace {

// One row of pixels. Added to channel c of pixel w is strength[c] * noise[w]; a map comes with strengths of one.
// `negative` is scratch, a byte a channel and 8 more.
template <bool kTwo, typename T>
ANDFAST_BODY void tail_row_body(const T* a, const T* b, const float* strength, const float* noise, float bend, T* y,
                                uint8_t* signs, uint8_t* negative, int64_t width, int64_t channels) {
  const int64_t bytes = sign_bytes(channels);
  for (int64_t w = 0; w < width; ++w, a += channels, b += kTwo ? channels : 0, y += channels, signs += bytes) {
    const float field = noise[w];
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const float z = kTwo ? load(a[c]) + load(b[c]) : load(a[c]);
      store(y[c], andfast::block_tail(z, bend, strength[c] * field));
      negative[c] = z < 0;
    }
    for (int64_t i = 0; i < bytes; ++i) signs[i] = pack_bits(negative + 8 * i);
  }
}

ANDFAST_CLONES void tail_row(const float* a, const float* b, const float* strength, const float* noise, float bend,
                             float* y, uint8_t* signs, uint8_t* negative, int64_t width, int64_t channels) {
  if (b) {
    tail_row_body<true>(a, b, strength, noise, bend, y, signs, negative, width, channels);
  } else {
    tail_row_body<false>(a, b, strength, noise, bend, y, signs, negative, width, channels);
  }
}
ANDFAST_CLONES void tail_row(const bfloat16* a, const bfloat16* b, const float* strength, const float* noise,
                             float bend, bfloat16* y, uint8_t* signs, uint8_t* negative, int64_t width,
                             int64_t channels) {
  if (b) {
    tail_row_body<true>(a, b, strength, noise, bend, y, signs, negative, width, channels);
  } else {
    tail_row_body<false>(a, b, strength, noise, bend, y, signs, negative, width, channels);
  }
}

// What one row adds to the gradients of the slope and the noise.
struct RowGrad {
  float bend;
  float* strength;  // (channels), added to: the sum over pixels of dy * noise[w]; null for a map
  float* map;       // (width), added to: the sum over channels of dy; null for strengths
};

// One row of the gradient, its border already folded in. `grad` is (width, channels) float32; y starts at the row's
// first pixel that is not border. `negative` is scratch: eight bytes for each of signs.
template <typename T>
ANDFAST_BODY void tail_grad_row_body(const float* grad, const T* y, const uint8_t* signs, const float* strength,
                                     const float* noise, float bend, T* dz, uint8_t* negative, RowGrad& sums,
                                     int64_t width, int64_t channels) {
  const int64_t bytes = sign_bytes(channels);
  unpack_row(signs, negative, width * bytes);
  float bend_sum = 0;
  for (int64_t w = 0; w < width; ++w, grad += channels, y += channels, dz += channels, negative += 8 * bytes) {
    const float field = noise[w];
    float map_sum = 0;
#pragma omp simd reduction(+ : bend_sum, map_sum)
    for (int64_t c = 0; c < channels; ++c) {
      const float g = grad[c];
      const float counts = negative[c];  // 0 or 1: arithmetic, where a choice would not become vector code
      store(dz[c], g + g * bend * counts);
      bend_sum += counts * (g * (load(y[c]) - strength[c] * field));
      map_sum += g;
    }
    if (sums.map) {
      sums.map[w] += map_sum;
    } else {
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) sums.strength[c] += grad[c] * field;
    }
  }
  sums.bend = bend_sum * inverse_slope(bend);
}

ANDFAST_CLONES void tail_grad_row(const float* grad, const float* y, const uint8_t* signs, const float* strength,
                                  const float* noise, float bend, float* dz, uint8_t* negative, RowGrad& sums,
                                  int64_t width, int64_t channels) {
  tail_grad_row_body(grad, y, signs, strength, noise, bend, dz, negative, sums, width, channels);
}
ANDFAST_CLONES void tail_grad_row(const float* grad, const bfloat16* y, const uint8_t* signs, const float* strength,
                                  const float* noise, float bend, bfloat16* dz, uint8_t* negative, RowGrad& sums,
                                  int64_t width, int64_t channels) {
  tail_grad_row_body(grad, y, signs, strength, noise, bend, dz, negative, sums, width, channels);
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

// Adds to an image's row h, (width, channels), what lies in the border around it. `bordered` is the whole image's.
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
void block_tail(const T* a, const T* b, const float* bend, Noise noise, T* y, uint8_t* signs, BlockShape shape,
                int64_t border, ParallelFor parallel_for) {
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
      tail_row(a + i * row, b ? b + i * row : nullptr, rows.strength, rows.noise, bend[rows.network],
               out + border * channels, signs + i * width * sign_bytes(channels), negative.data(), width, channels);
      if (border) replicate_row(out, h, height, width, channels);
    }
  });
}

template <typename T>
void block_tail_grad(const T* dy, const T* y, const uint8_t* signs, const float* bend, Noise noise, T* dz,
                     float* dbend, float* dnoise, BlockShape shape, int64_t border, ParallelFor parallel_for) {
  const int64_t networks = shape.networks, height = shape.height, width = shape.width, channels = shape.channels;
  const int64_t row = width * channels, bordered_row = (width + 2 * border) * channels;
  const int64_t bordered_image = (height + 2 * border) * bordered_row;
  const int64_t group = networks ? shape.images / networks : 0;

  // A network's row h in all of its images is one piece of work: sums over images need no order of threads.
  std::vector<double> bends(networks * height);
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
        tail_grad_row(grad.data(), y + image * bordered_image + (h + border) * bordered_row + border * channels,
                      signs + pixel * sign_bytes(channels), rows.strength, rows.noise, bend[network],
                      dz + pixel * channels, negative.data(), sums, width, channels);
        bends[i] += sums.bend;
      }
    }
  });
  for (int64_t network = 0; network < networks; ++network) {
    double sum = 0;
    for (int64_t h = 0; h < height; ++h) sum += bends[network * height + h];
    dbend[network] = float(sum);
    if (!noise.seeds) continue;
    for (int64_t c = 0; c < channels; ++c) {
      double total = 0;
      for (int64_t h = 0; h < height; ++h) total += strengths[(network * height + h) * channels + c];
      dnoise[network * channels + c] = float(total);
    }
  }
}

#define INSTANTIATE(T)                                                                                            \
  template void block_tail(const T*, const T*, const float*, Noise, T*, uint8_t*, BlockShape, int64_t,            \
                           ParallelFor);                                                                          \
  template void block_tail_grad(const T*, const T*, const uint8_t*, const float*, Noise, T*, float*, float*,      \
                                BlockShape, int64_t, ParallelFor);
INSTANTIATE(float)
INSTANTIATE(bfloat16)

}  // namespace andfast::cpu
