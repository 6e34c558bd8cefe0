// What stands between the generators' convolutions where these are a library's: LeakyReLU with the signs for the way
// back, and weights turned round for the gradients of inputs. andfast/ops/backends/generator_library.py says what they compute.
#include <vector>

#include "rows.h"

namespace andfast::cpu {
namespace {

ANDFAST_CLONES void leaky_pixel(const float* z, const float* slope, float* y, uint8_t* signs, uint8_t* bytes,
                                int64_t channels) {
  leaky_body(z, slope, y, signs, bytes, channels);
}
ANDFAST_CLONES void leaky_pixel(const bfloat16* z, const float* slope, bfloat16* y, uint8_t* signs, uint8_t* bytes,
                                int64_t channels) {
  leaky_body(z, slope, y, signs, bytes, channels);
}

ANDFAST_CLONES void leaky_grad_pixel(const float* dy, const float* slope, const uint8_t* signs, float* dz,
                                     uint8_t* bytes, int64_t channels) {
  leaky_grad_body(dy, slope, signs, dz, bytes, channels);
}
ANDFAST_CLONES void leaky_grad_pixel(const bfloat16* dy, const float* slope, const uint8_t* signs, bfloat16* dz,
                                     uint8_t* bytes, int64_t channels) {
  leaky_grad_body(dy, slope, signs, dz, bytes, channels);
}

}  // namespace

template <typename T>
void leaky(const T* z, const float* slope, T* y, uint8_t* signs, int64_t pixels, int64_t channels,
           ParallelFor parallel_for) {
  parallel_for(pixels, 512, [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> bytes(8 * sign_bytes(channels));
    for (int64_t i = begin; i < end; ++i) {
      leaky_pixel(z + i * channels, slope, y + i * channels, signs ? signs + i * sign_bytes(channels) : nullptr,
                  bytes.data(), channels);
    }
  });
}

template <typename T>
void leaky_grad(const T* dy, const float* slope, const uint8_t* signs, T* dz, int64_t pixels, int64_t channels,
                ParallelFor parallel_for) {
  parallel_for(pixels, 512, [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> bytes(8 * sign_bytes(channels));
    for (int64_t i = begin; i < end; ++i) {
      leaky_grad_pixel(dy + i * channels, slope, signs + i * sign_bytes(channels), dz + i * channels, bytes.data(),
                       channels);
    }
  });
}

template <typename T>
void turn_weights(const std::vector<WeightsOf<T>>& weights, int64_t first, int64_t count, float gain, T* turned,
                  ParallelFor parallel_for) {
  int64_t all = 0;
  for (const WeightsOf<T>& weight : weights) all += weight.outputs;
  parallel_for(9, 1, [&](int64_t begin, int64_t end) {
    for (int64_t tap = begin; tap < end; ++tap) {
      int64_t before = 0;
      for (size_t k = 0; k < weights.size(); before += weights[k].outputs, ++k) {
        const WeightSteps& steps = weights[k].steps;
        const float factor = k == 0 ? gain : 1;
        // Inputs innermost: they are what lies together, in channels_last.
        for (int64_t o = 0; o < weights[k].outputs; ++o) {
          const T* from = weights[k].taps + o * steps.output_step + first * steps.input_step + (8 - tap) * steps.tap_step;
          T* to = turned + tap * all + before + o;
          for (int64_t i = 0; i < count; ++i) store(to[i * 9 * all], factor * load(from[i * steps.input_step]));
        }
      }
    }
  });
}

#define ANDFAST_INSTANTIATE(T)                                                                                   \
  template void leaky<T>(const T*, const float*, T*, uint8_t*, int64_t, int64_t, ParallelFor);                   \
  template void leaky_grad<T>(const T*, const float*, const uint8_t*, T*, int64_t, int64_t, ParallelFor);        \
  template void turn_weights<T>(const std::vector<WeightsOf<T>>&, int64_t, int64_t, float, T*, ParallelFor);
ANDFAST_INSTANTIATE(float)
ANDFAST_INSTANTIATE(bfloat16)

}  // namespace andfast::cpu
