// ESRGAN's dense block in float32, and the gradient of its input: five convolutions that read growing parts of the same
// channels. Nothing is ever concatenated: a result is written where the next convolutions read it, and transformed into
// Winograd's tiles once for all of them. andfast/ops/dense_block.py says what the operators compute.
//
// Backwards it is the same chain. The gradient of a part is one convolution of the gradients of all results it went
// into, with their weights side by side; so is that of the part before it, with one more of them.
#include <vector>

#include "rows.h"
#include "tiles.h"
#include "weight_grad.h"

namespace andfast::cpu {
namespace {

// Transformed tiles are kept for the next convolutions up to this size; above it, where they would have to come from
// main memory, transforming anew is cheaper.
constexpr int64_t kKeptBytes = int64_t{64} << 20;

constexpr int64_t kGrown = kDenseConvs - 1;

int64_t read_by(DenseShape shape, int64_t conv) { return shape.features + conv * shape.growth; }
int64_t written_by(DenseShape shape, int64_t conv) { return conv < kGrown ? shape.growth : shape.features; }

// Convolution k of the chain reads all channels of `entry` and the first k parts of `grown`; it writes part k of `grown`,
// the last one `last`. pack(k, channel, u, step, scratch) transforms its weights from a channel that is read;
// finish(k, pixel, index) ends its results for a pixel.
template <typename Pack, typename Finish>
void chain(const float* entry, float* grown, float* last, DenseShape shape, ParallelFor parallel_for, Pack pack,
           Finish finish) {
  const Tiling tiling = {shape.images, shape.height, shape.width};
  const int64_t all = read_by(shape, kGrown), grown_step = kGrown * shape.growth;
  const int64_t group_size = kElements * element_step(kTiles, all);
  const bool keeps = tiling.groups() * group_size * int64_t{sizeof(float)} <= kKeptBytes;
  const std::unique_ptr<float[]> kept(new float[keeps ? tiling.groups() * group_size : 0]);

  for (int64_t k = 0; k < kDenseConvs; ++k) {
    const int64_t from = read_by(shape, k), to = written_by(shape, k), padded = round_up(to, kLane);
    const std::unique_ptr<float[]> u(new float[kElements * from * padded]());  // zeros where padded
    parallel_for(from, 16, [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(25 * to);
      for (int64_t c = begin; c < end; ++c) pack(k, c, u.get() + c * padded, from * padded, scratch.data());
    });
    parallel_for(tiling.groups(), 1, [&](int64_t begin, int64_t end) {
      std::vector<float> v(keeps ? 0 : group_size), m(kElements * element_step(kTiles, padded));
      std::vector<float> zeros(std::max(shape.features, grown_step)), unwanted(to);
      const auto enter = [&](Tiling::Place place, float* tile, int64_t step) {
        if (k == 0 || !keeps) {
          const Channels channels = {entry, shape.features, shape.features};
          enter_pixels(channels.plane(place.image, shape.height, shape.width, zeros.data()), place.h - 1, place.w - 1,
                       tile, step);
        }
        if (k > 0) {
          const int64_t known = keeps ? (k - 1) * shape.growth : 0;
          const Channels channels = {grown + known, grown_step, k * shape.growth - known};
          enter_pixels(channels.plane(place.image, shape.height, shape.width, zeros.data()), place.h - 1, place.w - 1,
                       tile + shape.features + known, step);
        }
      };
      const auto leave = [&](Tiling::Place place, const float* products, int64_t step) {
        float* results = k < kGrown ? grown + k * shape.growth : last;
        leave_tile(tiling, place, products, step, results, k < kGrown ? grown_step : to, to, unwanted.data(),
                   [&](float* pixel, int64_t index) { finish(k, pixel, index); });
      };
      for (int64_t group = begin; group < end; ++group) {
        float* tiles = keeps ? kept.get() + group * group_size : v.data();
        multiply_group(tiling, group, u.get(), from, padded, tiles, all, m.data(), enter, leave);
      }
    });
  }
}

}  // namespace

void dense_block(const float* x, const std::vector<Weights>& weights, const std::vector<const float*>& biases,
                 DenseShape shape, DenseFactors factors, float* y, float* grown, uint8_t* signs,
                 ParallelFor parallel_for) {
  const int64_t bytes_each = sign_bytes(shape.growth);
  const std::vector<float> slopes(shape.growth, factors.slope);
  const auto pack = [&](int64_t k, int64_t c, float* u, int64_t step, float* scratch) {
    const Weights& weight = weights[k];
    enter_weights({weight.taps + c * weight.steps.input_step, weight.steps.output_step, weight.steps.tap_step},
                  written_by(shape, k), 1, u, step, scratch);
  };
  const auto finish = [&](int64_t k, float* pixel, int64_t index) {
    if (k == kGrown) return add_to_residual(pixel, biases[k], factors.gain, x + index * shape.features, shape.features);
    uint8_t bytes[8 * kMostGrowthBytes] = {};  // bits past the channels are zero
    activate(pixel, biases[k], slopes.data(), signs ? signs + (index * kGrown + k) * bytes_each : nullptr, bytes,
             shape.growth);
  };
  chain(x, grown, y, shape, parallel_for, pack, finish);
}

void dense_block_input_grad(const float* dy, const std::vector<Weights>& weights, const uint8_t* signs,
                            DenseShape shape, DenseFactors factors, float* dx, float* dgrown,
                            ParallelFor parallel_for) {
  const int64_t bytes_each = sign_bytes(shape.growth);
  const std::vector<float> slopes(shape.growth, factors.slope), no_bias(shape.features);
  // Convolution k of the chain gives the gradient of what convolution `kGrown - 1 - k` of the block has written.
  const auto pack = [&](int64_t k, int64_t c, float* u, int64_t step, float* scratch) {
    const int64_t grown = c - shape.features;  // of the channels that are read, after those of dy
    const Weights& weight = weights[grown < 0 ? kGrown : kGrown - 1 - grown / shape.growth];
    const int64_t output = grown < 0 ? c : grown % shape.growth;
    const int64_t input = k < kGrown ? shape.features + (kGrown - 1 - k) * shape.growth : 0;
    const Taps taps = {weight.taps + output * weight.steps.output_step + input * weight.steps.input_step,
                       weight.steps.input_step, weight.steps.tap_step};
    enter_weights(taps.turned(), written_by(shape, k), grown < 0 ? factors.gain : 1, u, step, scratch);
  };
  const auto finish = [&](int64_t k, float* pixel, int64_t index) {
    if (k == kGrown) {
      return add_to_residual(pixel, no_bias.data(), 1, dy + index * shape.features, shape.features);
    }
    uint8_t bytes[8 * kMostGrowthBytes];
    pass_back(pixel, slopes.data(), signs + (index * kGrown + kGrown - 1 - k) * bytes_each, bytes, shape.growth);
  };
  chain(dy, dgrown, dx, shape, parallel_for, pack, finish);
}

void dense_block_weight_grad(const float* x, const float* grown, const float* dy, const float* dgrown,
                             DenseShape shape, DenseFactors factors, const std::vector<float*>& grads,
                             const std::vector<WeightSteps>& steps, ParallelFor parallel_for) {
  const int64_t grown_step = kGrown * shape.growth;
  std::vector<GradOf> convs;
  for (int64_t k = 0; k < kDenseConvs; ++k) {
    const Channels dz = k < kGrown ? Channels{dgrown + (kGrown - 1 - k) * shape.growth, grown_step, shape.growth}
                                   : Channels{dy, shape.features, shape.features};
    convs.push_back({dz, read_by(shape, k), k < kGrown ? 1 : factors.gain, grads[k], steps[k]});
  }
  weight_grad({{x, shape.features, shape.features}, {grown, grown_step, grown_step}}, convs,
              {1, shape.images, shape.height, shape.width, 1}, parallel_for);
}

}  // namespace andfast::cpu
