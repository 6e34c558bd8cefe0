// 3x3 convolutions of N networks in float32, by Winograd's algorithm (winograd.h). Channels of any number: matrices are
// padded to what the products take. andfast/ops/conv.py says what the operators compute.
#include <vector>

#include "rows.h"
#include "tiles.h"

namespace andfast::cpu {

void conv(const float* x, const Weights& weights, float* z, ConvShape shape, int64_t padding, bool backward,
          ConvTail tail, ParallelFor parallel_for) {
  const int64_t from = backward ? shape.outputs : shape.inputs, to = backward ? shape.inputs : shape.outputs;
  const int64_t from_step = backward ? weights.steps.output_step : weights.steps.input_step;
  const int64_t to_step = backward ? weights.steps.input_step : weights.steps.output_step;
  const int64_t padded = round_up(to, kLane);
  const int64_t network = kElements * from * padded;  // numbers of its transformed weights
  const Tiling tiling = {shape.images / shape.networks, shape.height + 2 * padding - 2, shape.width + 2 * padding - 2};

  const std::unique_ptr<float[]> u(new float[shape.networks * network]());  // zeros where padded
  parallel_for(shape.networks * from, 16, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(25 * to);
    for (int64_t i = begin; i < end; ++i) {
      const Taps taps = {weights.taps + i / from * weights.steps.network_step + i % from * from_step, to_step,
                         weights.steps.tap_step};
      enter_weights(backward ? taps.turned() : taps, to, 1, u.get() + i / from * network + i % from * padded,
                    from * padded, scratch.data());
    }
  });

  parallel_for(shape.networks * tiling.groups(), 1, [&](int64_t begin, int64_t end) {
    std::vector<float> v(kElements * element_step(kTiles, from)), m(kElements * element_step(kTiles, padded));
    std::vector<float> zeros(from), unwanted(to);
    std::vector<uint8_t> bytes(8 * sign_bytes(to));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / tiling.groups(), first = n * tiling.images;
      const Channels pixels = {x + first * shape.height * shape.width * from, from, from};
      const int64_t results = first * tiling.height * tiling.width;
      const auto enter = [&](Tiling::Place place, float* tile, int64_t step) {
        const Plane plane = pixels.plane(place.image, shape.height, shape.width, zeros.data());
        enter_pixels(plane, place.h - padding, place.w - padding, tile, step);
      };
      const auto leave = [&](Tiling::Place place, const float* products, int64_t step) {
        leave_tile(tiling, place, products, step, z + results * to, to, to, unwanted.data(),
                   [&](float* pixel, int64_t index) {
                     uint8_t* signs = tail.signs ? tail.signs + (results + index) * sign_bytes(to) : nullptr;
                     if (tail.slope) activate(pixel, tail.bias, tail.slope, signs, bytes.data(), to);
                   });
      };
      multiply_group(tiling, i % tiling.groups(), u.get() + n * network, from, padded, v.data(), from, m.data(), enter,
                     leave);
    }
  });
}

}  // namespace andfast::cpu
