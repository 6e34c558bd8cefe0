// What the generators need beside a library's convolutions: LeakyReLU with the sign mask for its backward pass, and
// flipped, transposed weights for the gradients of inputs. andfast/ops/backends/library.py says what they compute.
#include <vector>

#include "rows.h"

namespace andfast::cpu {
namespace {

ANDFAST_CLONES void leaky_relu_pixel(const float* z, const float* slope, float* y, uint8_t* sign_mask, uint8_t* bytes,
                                     int64_t channels) {
  leaky_relu_body(z, slope, y, sign_mask, bytes, channels);
}
ANDFAST_CLONES void leaky_relu_pixel(const bfloat16* z, const float* slope, bfloat16* y, uint8_t* sign_mask,
                                     uint8_t* bytes, int64_t channels) {
  leaky_relu_body(z, slope, y, sign_mask, bytes, channels);
}

ANDFAST_CLONES void leaky_relu_backward_pixel(const float* dy, const float* slope, const uint8_t* sign_mask, float* dz,
                                              uint8_t* bytes, int64_t channels) {
  leaky_relu_backward_body(dy, slope, sign_mask, dz, bytes, channels);
}
ANDFAST_CLONES void leaky_relu_backward_pixel(const bfloat16* dy, const float* slope, const uint8_t* sign_mask,
                                              bfloat16* dz, uint8_t* bytes, int64_t channels) {
  leaky_relu_backward_body(dy, slope, sign_mask, dz, bytes, channels);
}

}  // namespace

template <typename T>
void leaky_relu(const T* z, const float* slope, T* y, uint8_t* sign_mask, int64_t pixels, int64_t channels,
                ParallelFor parallel_for) {
  parallel_for(pixels, 512, [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> bytes(8 * sign_bytes(channels));
    for (int64_t i = begin; i < end; ++i) {
      leaky_relu_pixel(z + i * channels, slope, y + i * channels,
                       sign_mask ? sign_mask + i * sign_bytes(channels) : nullptr, bytes.data(), channels);
    }
  });
}

template <typename T>
void leaky_relu_backward(const T* dy, const float* slope, const uint8_t* sign_mask, T* dz, int64_t pixels,
                         int64_t channels, ParallelFor parallel_for) {
  parallel_for(pixels, 512, [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> bytes(8 * sign_bytes(channels));
    for (int64_t i = begin; i < end; ++i) {
      leaky_relu_backward_pixel(dy + i * channels, slope, sign_mask + i * sign_bytes(channels), dz + i * channels,
                                bytes.data(), channels);
    }
  });
}

template <typename T>
void flip_transpose(const std::vector<WeightsOf<T>>& weights, int64_t first, int64_t count, float gain, T* flipped,
                    ParallelFor parallel_for) {
  int64_t all = 0;
  for (const WeightsOf<T>& weight : weights) all += weight.outputs;
  parallel_for(9, 1, [&](int64_t begin, int64_t end) {
    for (int64_t tap = begin; tap < end; ++tap) {
      int64_t before = 0;
      for (size_t k = 0; k < weights.size(); before += weights[k].outputs, ++k) {
        const WeightSteps& steps = weights[k].steps;
        const float factor = k == 0 ? gain : 1;
        // Inputs innermost: in channels_last they are contiguous.
        for (int64_t o = 0; o < weights[k].outputs; ++o) {
          const T* from =
              weights[k].taps + o * steps.output_step + first * steps.input_step + (8 - tap) * steps.tap_step;
          T* to = flipped + tap * all + before + o;
          for (int64_t i = 0; i < count; ++i) store(to[i * 9 * all], factor * load(from[i * steps.input_step]));
        }
      }
    }
  });
}

#define ANDFAST_INSTANTIATE(T)                                                                                     \
  template void leaky_relu<T>(const T*, const float*, T*, uint8_t*, int64_t, int64_t, ParallelFor);                \
  template void leaky_relu_backward<T>(const T*, const float*, const uint8_t*, T*, int64_t, int64_t, ParallelFor); \
  template void flip_transpose<T>(const std::vector<WeightsOf<T>>&, int64_t, int64_t, float, T*, ParallelFor);
ANDFAST_INSTANTIATE(float)
ANDFAST_INSTANTIATE(bfloat16)

}  // namespace andfast::cpu
