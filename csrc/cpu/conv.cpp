// 3x3 convolutions of N networks in float32, by Winograd's algorithm (winograd.h). Any number of channels: matrices are
// padded to the sizes that gemm takes. andfast/ops/backends/winograd.py says what the operators compute.
#include <vector>

#include "rows.h"
#include "tiles.h"

namespace andfast::cpu {

namespace {

// z of x, and finish(pixel, network, place in its images, bytes) for each of its pixels; `bytes` is scratch,
// eight for each byte of a pixel's sign mask, zero past the channels.
template <int kOut, typename Finish>
void convolve_in(const float* x, const Weights& weights, ConvShape shape, int64_t padding, bool backward, float* z,
                 int64_t border, int64_t threads, ParallelFor parallel_for, Finish finish) {
  const int64_t from = backward ? shape.outputs : shape.inputs, to = backward ? shape.inputs : shape.outputs;
  const WeightSteps& steps = weights.steps;
  const int64_t from_step = backward ? steps.output_step : steps.input_step;
  const int64_t to_step = backward ? steps.input_step : steps.output_step;
  const int64_t padded = round_up(to, kLane);
  const int64_t network = Sizes<kOut>::kElements * from * padded;  // the size of its transformed weights
  const Tiling<kOut> tiling = {shape.images / shape.networks, shape.height + 2 * padding - 2,
                               shape.width + 2 * padding - 2, (threads + shape.networks - 1) / shape.networks};
  const int64_t written = tiling.images * (tiling.height + 2 * border) * (tiling.width + 2 * border) * to;

  const Scratch u(shape.networks * network);
  transform_weights<kOut>(shape.networks, from, to, u.get(), parallel_for, [&](int64_t n, int64_t c) {
    const Taps taps = {weights.taps + n * steps.network_step + c * from_step, to_step, steps.tap_step};
    return backward ? taps.flipped() : taps;
  });

  parallel_for(shape.networks * tiling.groups(), 1, [&](int64_t begin, int64_t end) {
    const Scratch v(tiling.group_numbers(from)), m(tiling.group_numbers(padded));
    std::vector<float> zeros(from), unwanted(to);
    std::vector<uint8_t> bytes(8 * sign_bytes(to));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / tiling.groups();
      const Channels pixels = {x + n * tiling.images * shape.height * shape.width * from, from, from};
      const Results results = {z + n * written, to, to, border};
      const auto read_tile = [&](Place place, float* tile, int64_t step) {
        const Plane plane = pixels.plane(place.image, shape.height, shape.width, zeros.data());
        input_transform<kOut>(plane, place.h - padding, place.w - padding, tile, step);
      };
      const auto write_results = [&](Place first, const float* products, int64_t step) {
        write_tile(tiling, first, products, step, results, unwanted.data(),
                   [&](float* pixel, Place place) { finish(pixel, n, place, bytes.data()); });
      };
      multiply_group(tiling, i % tiling.groups(), u.get() + n * network, from, padded, v.get(), from, m.get(),
                     read_tile, write_results);
    }
  });
}

template <typename Finish>
void convolve(const float* x, const Weights& weights, ConvShape shape, int64_t padding, bool backward, float* z,
              int64_t border, int64_t threads, ParallelFor parallel_for, Finish finish) {
  with_tiles(shape.height + 2 * padding - 2, shape.width + 2 * padding - 2, [&](auto out) {
    convolve_in<decltype(out)::value>(x, weights, shape, padding, backward, z, border, threads, parallel_for, finish);
  });
}

// Copies a pixel of an image with a border of one to where the border repeats it.
void replicate_pixel(float* pixel, int64_t height, int64_t width, Place place, int64_t channels) {
  for (int64_t i = place.h == 0 ? -1 : 0; i <= (place.h == height - 1 ? 1 : 0); ++i) {
    for (int64_t j = place.w == 0 ? -1 : 0; j <= (place.w == width - 1 ? 1 : 0); ++j) {
      float* copy = pixel + (i * (width + 2) + j) * channels;
      if (copy != pixel) std::copy(pixel, pixel + channels, copy);
    }
  }
}

}  // namespace

void conv(const float* x, const Weights& weights, float* z, ConvShape shape, int64_t padding, bool backward,
          ConvEpilogue epilogue, int64_t threads, ParallelFor parallel_for) {
  const int64_t to = backward ? shape.inputs : shape.outputs;
  const int64_t height = shape.height + 2 * padding - 2, width = shape.width + 2 * padding - 2;
  convolve(x, weights, shape, padding, backward, z, 0, threads, parallel_for,
           [&](float* pixel, int64_t network, Place place, uint8_t* bytes) {
             if (!epilogue.slope) return;
             const int64_t image = network * (shape.images / shape.networks) + place.image;
             const int64_t index = (image * height + place.h) * width + place.w;
             uint8_t* sign_mask = epilogue.sign_mask ? epilogue.sign_mask + index * sign_bytes(to) : nullptr;
             activate(pixel, epilogue.bias, epilogue.slope, sign_mask, bytes, to);
           });
}

void conv_block(const float* x, const Weights& weights, const float* slope_minus_one, const float* noise, float* y,
                uint8_t* sign_mask, ConvShape shape, int64_t border, int64_t threads, ParallelFor parallel_for) {
  const int64_t channels = shape.outputs, height = shape.height - 2, width = shape.width - 2;
  convolve(x, weights, shape, 0, false, y, border, threads, parallel_for,
           [&](float* pixel, int64_t network, Place place, uint8_t* bytes) {
             const int64_t image = network * (shape.images / shape.networks) + place.image;
             const int64_t in_image = place.h * width + place.w;
             block_epilogue_pixel(pixel, slope_minus_one[network], noise[network * height * width + in_image],
                                  sign_mask + (image * height * width + in_image) * sign_bytes(channels), bytes,
                                  channels);
             if (border) replicate_pixel(pixel, height, width, place, channels);
           });
}

}  // namespace andfast::cpu
