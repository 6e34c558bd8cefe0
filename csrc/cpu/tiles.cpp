// The functions of tiles.h, compiled for several instruction sets.
#include "tiles.h"

#include "rows.h"
#include "winograd.h"

namespace andfast::cpu {
namespace {

typedef float Float4 __attribute__((vector_size(16)));
typedef float Float8 __attribute__((vector_size(32)));
typedef float Float16 __attribute__((vector_size(64)));

template <typename Value>
ANDFAST_BODY Value load_value(const float* from) {
  typedef Value Unaligned __attribute__((aligned(4), may_alias));
  return *reinterpret_cast<const Unaligned*>(from);
}
template <typename Value>
ANDFAST_BODY void store_value(float* to, const Value& value) {
  typedef Value Unaligned __attribute__((aligned(4), may_alias));
  *reinterpret_cast<Unaligned*>(to) = value;
}

// The transforms of some channels, from the c-th on: a vector of them, or one. `from` and `to` point to pixels.
template <int kOut, typename Value>
ANDFAST_BODY void input_at(const float* const* from, int64_t c, float* v, int64_t step) {
  constexpr int kSide = kOut + 2;
  Value columns[kSide][kSide], line[kSide], to[kSide];
#pragma GCC unroll 8
  for (int j = 0; j < kSide; ++j) {
#pragma GCC unroll 8
    for (int i = 0; i < kSide; ++i) line[i] = load_value<Value>(from[kSide * i + j] + c);
    Lines<kOut>::input(line, columns[j]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < kSide; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kSide; ++j) line[j] = columns[j][i];
    Lines<kOut>::input(line, to);
#pragma GCC unroll 8
    for (int j = 0; j < kSide; ++j) store_value(v + (kSide * i + j) * step + c, to[j]);
  }
}

template <int kOut, typename Value>
ANDFAST_BODY void gradient_at(const float* const* from, int64_t c, float* v, int64_t step) {
  constexpr int kSide = kOut + 2;
  Value columns[kOut][kSide], line[kOut], to[kSide];
#pragma GCC unroll 8
  for (int j = 0; j < kOut; ++j) {
#pragma GCC unroll 8
    for (int i = 0; i < kOut; ++i) line[i] = load_value<Value>(from[kOut * i + j] + c);
    Lines<kOut>::gradient(line, columns[j]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < kSide; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kOut; ++j) line[j] = columns[j][i];
    Lines<kOut>::gradient(line, to);
#pragma GCC unroll 8
    for (int j = 0; j < kSide; ++j) store_value(v + (kSide * i + j) * step + c, to[j]);
  }
}

template <int kOut, typename Value>
ANDFAST_BODY void output_at(const float* m, int64_t c, float* const* to, int64_t step) {
  constexpr int kSide = kOut + 2;
  Value columns[kSide][kOut], line[kSide], results[kOut];
#pragma GCC unroll 8
  for (int j = 0; j < kSide; ++j) {
#pragma GCC unroll 8
    for (int i = 0; i < kSide; ++i) line[i] = load_value<Value>(m + (kSide * i + j) * step + c);
    Lines<kOut>::output(line, columns[j]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < kOut; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kSide; ++j) line[j] = columns[j][i];
    Lines<kOut>::output(line, results);
#pragma GCC unroll 8
    for (int j = 0; j < kOut; ++j) store_value(to[kOut * i + j] + c, results[j]);
  }
}

// Tap t of channel c at taps[t * count + c].
template <int kOut, typename Value>
ANDFAST_BODY void weight_at(const float* taps, int64_t count, int64_t c, float* u, int64_t step) {
  constexpr int kSide = kOut + 2;
  Value columns[3][kSide], line[3], to[kSide];
#pragma GCC unroll 8
  for (int j = 0; j < 3; ++j) {
#pragma GCC unroll 8
    for (int i = 0; i < 3; ++i) line[i] = load_value<Value>(taps + (3 * i + j) * count + c);
    Lines<kOut>::weight(line, columns[j]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < kSide; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < 3; ++j) line[j] = columns[j][i];
    Lines<kOut>::weight(line, to);
#pragma GCC unroll 8
    for (int j = 0; j < kSide; ++j) store_value(u + (kSide * i + j) * step + c, to[j]);
  }
}

template <int kOut, typename Value>
ANDFAST_BODY void weight_gradient_at(const float* m, int64_t c, int64_t step, float* taps, int64_t count) {
  constexpr int kSide = kOut + 2;
  Value columns[kSide][3], line[kSide], to[3];
#pragma GCC unroll 8
  for (int j = 0; j < kSide; ++j) {
#pragma GCC unroll 8
    for (int i = 0; i < kSide; ++i) line[i] = load_value<Value>(m + (kSide * i + j) * step + c);
    Lines<kOut>::weight_gradient(line, columns[j]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 3; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kSide; ++j) line[j] = columns[j][i];
    Lines<kOut>::weight_gradient(line, to);
#pragma GCC unroll 8
    for (int j = 0; j < 3; ++j) store_value(taps + (3 * i + j) * count + c, to[j]);
  }
}

// All transforms, for one instruction set: of vectors of channels, and the channels left over one by one.
template <int kOut>
struct Transforms {
  void (*input)(const float* const* from, float* v, int64_t step, int64_t channels);
  void (*gradient)(const float* const* from, float* v, int64_t step, int64_t channels);
  void (*output)(const float* m, int64_t step, float* const* to, int64_t channels);
  void (*weight)(const float* taps, float* u, int64_t step, int64_t channels);
  void (*weight_gradient)(const float* m, int64_t step, float* taps, int64_t channels);
};

#define ANDFAST_TRANSFORMS(name, target, Vector)                                                                    \
  template <int kOut>                                                                                               \
  target void input_##name(const float* const* from, float* v, int64_t step, int64_t channels) {                    \
    int64_t c = 0;                                                                                                  \
    for (; c + kLanes<Vector> <= channels; c += kLanes<Vector>) input_at<kOut, Vector>(from, c, v, step);           \
    for (; c < channels; ++c) input_at<kOut, float>(from, c, v, step);                                              \
  }                                                                                                                 \
  template <int kOut>                                                                                               \
  target void gradient_##name(const float* const* from, float* v, int64_t step, int64_t channels) {                 \
    int64_t c = 0;                                                                                                  \
    for (; c + kLanes<Vector> <= channels; c += kLanes<Vector>) gradient_at<kOut, Vector>(from, c, v, step);        \
    for (; c < channels; ++c) gradient_at<kOut, float>(from, c, v, step);                                           \
  }                                                                                                                 \
  template <int kOut>                                                                                               \
  target void output_##name(const float* m, int64_t step, float* const* to, int64_t channels) {                     \
    int64_t c = 0;                                                                                                  \
    for (; c + kLanes<Vector> <= channels; c += kLanes<Vector>) output_at<kOut, Vector>(m, c, to, step);            \
    for (; c < channels; ++c) output_at<kOut, float>(m, c, to, step);                                               \
  }                                                                                                                 \
  template <int kOut>                                                                                               \
  target void weight_##name(const float* taps, float* u, int64_t step, int64_t channels) {                          \
    int64_t c = 0;                                                                                                  \
    for (; c + kLanes<Vector> <= channels; c += kLanes<Vector>) weight_at<kOut, Vector>(taps, channels, c, u, step); \
    for (; c < channels; ++c) weight_at<kOut, float>(taps, channels, c, u, step);                                   \
  }                                                                                                                 \
  template <int kOut>                                                                                               \
  target void weight_gradient_##name(const float* m, int64_t step, float* taps, int64_t channels) {                 \
    int64_t c = 0;                                                                                                  \
    for (; c + kLanes<Vector> <= channels; c += kLanes<Vector>)                                                     \
      weight_gradient_at<kOut, Vector>(m, c, step, taps, channels);                                                 \
    for (; c < channels; ++c) weight_gradient_at<kOut, float>(m, c, step, taps, channels);                          \
  }                                                                                                                 \
  template <int kOut>                                                                                               \
  constexpr Transforms<kOut> transforms_##name = {input_##name<kOut>, gradient_##name<kOut>, output_##name<kOut>,   \
                                                  weight_##name<kOut>, weight_gradient_##name<kOut>};

template <typename Vector>
constexpr int64_t kLanes = sizeof(Vector) / sizeof(float);

ANDFAST_TRANSFORMS(baseline, , Float4)
#if defined(__x86_64__)
ANDFAST_TRANSFORMS(avx2, __attribute__((target("avx2,fma"))), Float8)
ANDFAST_TRANSFORMS(avx512, __attribute__((target("avx512f,fma"))), Float16)
#endif

template <int kOut>
const Transforms<kOut>& fastest_transforms() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return transforms_avx512<kOut>;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return transforms_avx2<kOut>;
#endif
  return transforms_baseline<kOut>;
}

template <int kOut>
const Transforms<kOut>& transforms() {
  static const Transforms<kOut>& fastest = fastest_transforms<kOut>();
  return fastest;
}

}  // namespace

template <int kOut>
void input_transform(const Plane& image, int64_t top, int64_t left, float* v, int64_t step) {
  constexpr int kSide = Sizes<kOut>::kSide;
  const float* from[kSide * kSide];
  for (int k = 0; k < kSide * kSide; ++k) from[k] = image.at(top + k / kSide, left + k % kSide);
  transforms<kOut>().input(from, v, step, image.channels);
}

template <int kOut>
void gradient_transform(const Plane& image, int64_t top, int64_t left, float* v, int64_t step) {
  const float* from[kOut * kOut];
  for (int k = 0; k < kOut * kOut; ++k) from[k] = image.at(top + k / kOut, left + k % kOut);
  transforms<kOut>().gradient(from, v, step, image.channels);
}

template <int kOut>
void output_transform(const float* m, int64_t step, float* const* to, int64_t channels) {
  transforms<kOut>().output(m, step, to, channels);
}

template <int kOut>
void weight_transform(const Taps& taps, int64_t count, float* u, int64_t step, float* scratch) {
  for (int64_t c = 0; c < count; ++c) {  // so that channels are neighbours
    for (int t = 0; t < 9; ++t) scratch[t * count + c] = taps.factor * taps.first[c * taps.channel_step + t * taps.tap_step];
  }
  transforms<kOut>().weight(scratch, u, step, count);
}

template <int kOut>
void weight_gradient_transform(const float* m, int64_t step, float factor, float* grad, int64_t channel_step,
                               int64_t tap_step, int64_t channels, float* scratch) {
  transforms<kOut>().weight_gradient(m, step, scratch, channels);
  for (int64_t c = 0; c < channels; ++c) {
    for (int t = 0; t < 9; ++t) grad[c * channel_step + t * tap_step] = factor * scratch[t * channels + c];
  }
}

#define ANDFAST_INSTANTIATE(kOut)                                                                                  \
  template void input_transform<kOut>(const Plane&, int64_t, int64_t, float*, int64_t);                            \
  template void gradient_transform<kOut>(const Plane&, int64_t, int64_t, float*, int64_t);                         \
  template void output_transform<kOut>(const float*, int64_t, float* const*, int64_t);                             \
  template void weight_transform<kOut>(const Taps&, int64_t, float*, int64_t, float*);                             \
  template void weight_gradient_transform<kOut>(const float*, int64_t, float, float*, int64_t, int64_t, int64_t,   \
                                                float*);
ANDFAST_INSTANTIATE(2)
ANDFAST_INSTANTIATE(4)

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
