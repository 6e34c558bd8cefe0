// The functions of tiles.h, compiled for several instruction sets.
#include "tiles.h"

#include "rows.h"
#include "vectors.h"
#include "winograd.h"

namespace andfast::cpu {
namespace {

// Where the values of a tile are: at one pointer each, or `step` numbers apart.
template <typename Number>
struct Pixels {
  Number* const* pixels;
  ANDFAST_BODY Number* at(int k) const { return pixels[k]; }
};
template <typename Number>
struct Elements {
  Number* first;
  int64_t step;
  ANDFAST_BODY Number* at(int k) const { return first + k * step; }
};

// The transforms of winograd.h, with the lengths of a line before and after.
#define ANDFAST_LINES(name, function, from, to)                              \
  template <int kOut>                                                        \
  struct name {                                                              \
    static constexpr int kFrom = from, kTo = to;                             \
    template <typename Value>                                                \
    static ANDFAST_BODY void line(const Value* values, Value* transformed) { \
      Lines<kOut>::function(values, transformed);                            \
    }                                                                        \
  };
ANDFAST_LINES(Input, input, kOut + 2, kOut + 2)
ANDFAST_LINES(Gradient, gradient, kOut, kOut + 2)
ANDFAST_LINES(Output, output, kOut + 2, kOut)
ANDFAST_LINES(Weight, weight, 3, kOut + 2)
ANDFAST_LINES(WeightGradient, weight_gradient, kOut + 2, 3)

// A transform of some channels, from the c-th on: a vector of them, or one.
template <typename Transform, typename Value, typename From, typename To>
ANDFAST_BODY void transform_at(const From& from, const To& to, int64_t c) {
  constexpr int kFrom = Transform::kFrom, kTo = Transform::kTo;
  Value columns[kFrom][kTo], line[kFrom], transformed[kTo];
#pragma GCC unroll 8
  for (int j = 0; j < kFrom; ++j) {
#pragma GCC unroll 8
    for (int i = 0; i < kFrom; ++i) line[i] = load_vector<Value>(from.at(kFrom * i + j) + c);
    Transform::line(line, columns[j]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < kTo; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kFrom; ++j) line[j] = columns[j][i];
    Transform::line(line, transformed);
#pragma GCC unroll 8
    for (int j = 0; j < kTo; ++j) store_vector(to.at(kTo * i + j) + c, transformed[j]);
  }
}

template <typename From, typename To>
using Function = void (*)(From from, To to, int64_t channels);

// For one instruction set: of vectors of channels, and those left over one by one.
#define ANDFAST_TRANSFORM(name, target, Vector)                                             \
  template <typename Transform, typename From, typename To>                                 \
  target void transform_##name(From from, To to, int64_t channels) {                        \
    constexpr int64_t lanes = sizeof(Vector) / sizeof(float);                               \
    int64_t c = 0;                                                                          \
    for (; c + lanes <= channels; c += lanes) transform_at<Transform, Vector>(from, to, c); \
    for (; c < channels; ++c) transform_at<Transform, float>(from, to, c);                  \
  }
ANDFAST_TRANSFORM(baseline, , Float4)
#if defined(__x86_64__)
ANDFAST_TRANSFORM(avx2, __attribute__((target("avx2,fma"))), Float8)
ANDFAST_TRANSFORM(avx512, __attribute__((target("avx512f,fma"))), Float16)
#endif

template <typename Transform, typename From, typename To>
Function<From, To> fastest_transform() {
#if defined(__x86_64__)
  if (has_avx512()) return transform_avx512<Transform, From, To>;
  if (has_avx2()) return transform_avx2<Transform, From, To>;
#endif
  return transform_baseline<Transform, From, To>;
}

template <typename Transform, typename From, typename To>
void transform(From from, To to, int64_t channels) {
  static const Function<From, To> fastest = fastest_transform<Transform, From, To>();
  fastest(from, to, channels);
}

// Prefetches the pixels that the next tile reads, `rows` x `columns` from (top, left) on, unless they are near already.
// Inlined: GCC drops calls of functions that do nothing else.
ANDFAST_BODY void prefetch_after(const Plane& image, int64_t top, int64_t left, int64_t rows, int64_t columns) {
  if (!is_far(image.height * image.width * image.step)) return;
  for (int64_t h = top; h < top + rows; ++h) {
    for (int64_t w = left; w < left + columns; ++w) prefetch<false>(image.at(h, w), image.channels * sizeof(float));
  }
}

}  // namespace

template <int kOut>
void input_transform(const Plane& image, int64_t top, int64_t left, float* v, int64_t step) {
  constexpr int kSide = Sizes<kOut>::kSide;
  const float* from[kSide * kSide];
  for (int k = 0; k < kSide * kSide; ++k) from[k] = image.at(top + k / kSide, left + k % kSide);
  prefetch_after(image, top, left + kSide, kSide, kOut);
  transform<Input<kOut>>(Pixels<const float>{from}, Elements<float>{v, step}, image.channels);
}

template <int kOut>
void gradient_transform(const Plane& image, int64_t top, int64_t left, float* v, int64_t step) {
  const float* from[kOut * kOut];
  for (int k = 0; k < kOut * kOut; ++k) from[k] = image.at(top + k / kOut, left + k % kOut);
  prefetch_after(image, top, left + kOut, kOut, kOut);
  transform<Gradient<kOut>>(Pixels<const float>{from}, Elements<float>{v, step}, image.channels);
}

template <int kOut>
void output_transform(const float* m, int64_t step, float* const* to, int64_t channels) {
  transform<Output<kOut>>(Elements<const float>{m, step}, Pixels<float>{to}, channels);
}

template <int kOut>
void weight_transform(const Taps* taps, int64_t from, int64_t to, float* u, int64_t step) {
  alignas(64) float lanes[kTogether][9 * kLane] = {};  // so that written channels are neighbours
  const bool whole = to == kLane, read_neighbours = [&] {
    for (int64_t i = 1; i < from; ++i) {
      if (taps[i].first != taps[0].first + i || taps[i].channel_step != taps[0].channel_step) return false;
    }
    return from == kTogether;
  }();
  for (int t = 0; t < 9; ++t) {
    if (whole && read_neighbours) {
      for (int64_t c = 0; c < kLane; c += 4) {
        transpose4(taps[0].first + c * taps[0].channel_step + t * taps[0].tap_step, taps[0].channel_step,
                   lanes[0] + t * kLane + c, 9 * kLane);
      }
      continue;
    }
    for (int64_t i = 0; i < from; ++i) {
      const float* first = taps[i].first + t * taps[i].tap_step;
      float* lane = lanes[i] + t * kLane;
      if (whole && taps[i].channel_step == 1) {
        std::copy_n(first, kLane, lane);
      } else {
        for (int64_t c = 0; c < to; ++c) lane[c] = first[c * taps[i].channel_step];
      }
    }
  }
  for (int64_t i = 0; i < from; ++i) {
    if (taps[i].factor != 1) {
      for (float& tap : lanes[i]) tap *= taps[i].factor;
    }
    transform<Weight<kOut>>(Elements<const float>{lanes[i], kLane}, Elements<float>{u + i * kLane, step}, kLane);
  }
}

template <int kOut>
void weight_gradient_transform(const float* m, int64_t step, float factor, float* grad, int64_t channel_step,
                               int64_t tap_step, int64_t channels, float* scratch) {
  transform<WeightGradient<kOut>>(Elements<const float>{m, step}, Elements<float>{scratch, channels}, channels);
  for (int64_t c = 0; c < channels; ++c) {
    for (int t = 0; t < 9; ++t) grad[c * channel_step + t * tap_step] = factor * scratch[t * channels + c];
  }
}

#define ANDFAST_INSTANTIATE(kOut)                                                                                \
  template void input_transform<kOut>(const Plane&, int64_t, int64_t, float*, int64_t);                          \
  template void gradient_transform<kOut>(const Plane&, int64_t, int64_t, float*, int64_t);                       \
  template void output_transform<kOut>(const float*, int64_t, float* const*, int64_t);                           \
  template void weight_transform<kOut>(const Taps*, int64_t, int64_t, float*, int64_t);                          \
  template void weight_gradient_transform<kOut>(const float*, int64_t, float, float*, int64_t, int64_t, int64_t, \
                                                float*);
ANDFAST_INSTANTIATE(2)
ANDFAST_INSTANTIATE(4)
template void weight_transform<6>(const Taps*, int64_t, int64_t, float*, int64_t);

ANDFAST_CLONES void activate(float* z, const float* bias, const float* slope, uint8_t* sign_mask, uint8_t* bytes,
                             int64_t channels) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) z[c] += bias[c];
  leaky_relu_body(z, slope, z, sign_mask, bytes, channels);
}

ANDFAST_CLONES void block_epilogue_pixel(float* z, float slope_minus_one, float noise, uint8_t* sign_mask,
                                         uint8_t* bytes, int64_t channels) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    bytes[c] = z[c] < 0;
    z[c] = andfast::block_epilogue(z[c], slope_minus_one, noise);
  }
  for (int64_t i = 0; i < sign_bytes(channels); ++i) sign_mask[i] = pack_bits(bytes + 8 * i);
}

ANDFAST_CLONES void leaky_relu_backward_pixel(float* dz, const float* slope, const uint8_t* sign_mask, uint8_t* bytes,
                                              int64_t channels) {
  leaky_relu_backward_body(dz, slope, sign_mask, dz, bytes, channels);
}

ANDFAST_CLONES void add_to_residual(float* z, const float* bias, float gain, const float* residual, int64_t channels) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) z[c] = residual[c] + gain * (z[c] + bias[c]);
}

}  // namespace andfast::cpu
