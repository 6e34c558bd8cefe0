// ESRGAN's dense block in float32, and the gradient of its input: five convolutions that read growing parts of the same
// channels. Nothing is concatenated: a result is written where the next convolutions read it, and transformed into
// Winograd's tiles once for all of them. andfast/ops/dense_block.py says what the operators compute.
//
// The backward pass is the same chain. The gradient of a part is one convolution of the gradients of all results it
// went into, with their weights side by side; so is that of the part before it, with one more of them.
#include <vector>

#include "rows.h"
#include "tiles.h"
#include "weight_grad.h"

namespace andfast::cpu {
namespace {

// The bytes of transformed tiles that are kept for the next convolutions; this limits the number of images processed
// together. For a larger image nothing is kept: transforming again is cheaper than reading from main memory.
constexpr int64_t kKeptBytes = int64_t{8} << 20;

int64_t read_by(DenseShape shape, int64_t conv) { return shape.features + conv * shape.growth; }
int64_t written_by(DenseShape shape, int64_t conv) { return conv < kIntermediates ? shape.growth : shape.features; }

// Convolution k of the chain reads all channels of `entry` and the first k parts of `intermediates`; it writes part k
// of `intermediates`, the last one `last`. taps(k, channel) are its weights from a channel that is read; finish(k,
// pixel, index, bytes) applies the epilogue to a pixel; `bytes` is scratch, eight for each byte of a pixel's sign mask,
// zero past the channels.
template <int kOut, typename TapsOf, typename Finish>
void chain_in(const float* entry, float* intermediates, float* last, DenseShape shape, int64_t threads,
              ParallelFor parallel_for, TapsOf taps, Finish finish) {
  const int64_t all = read_by(shape, kIntermediates), intermediate_step = kIntermediates * shape.growth;
  const int64_t pixels = shape.height * shape.width;
  const auto tiles_of = [&](int64_t images) { return Tiling<kOut>{images, shape.height, shape.width, threads}; };
  const int64_t image_bytes = std::max<int64_t>(1, tiles_of(1).numbers(all) * sizeof(float));
  const bool keeps = image_bytes <= kKeptBytes;
  const int64_t at_once = keeps ? std::max<int64_t>(1, std::min(shape.images, kKeptBytes / image_bytes)) : shape.images;
  const Scratch kept(keeps ? std::max(tiles_of(at_once).numbers(all), tiles_of(shape.images % at_once).numbers(all))
                           : 0);

  // The transformed weights of a convolution, from `begins` on. If no more images follow, all take the same memory: it
  // stays in the cache.
  std::vector<int64_t> begins;
  int64_t size = 0, largest = 0;
  for (int64_t k = 0; k < kDenseConvs; ++k) {
    const int64_t numbers = Sizes<kOut>::kElements * read_by(shape, k) * round_up(written_by(shape, k), kLane);
    begins.push_back(at_once < shape.images ? size : 0);
    size += numbers, largest = std::max(largest, numbers);
  }
  const Scratch weights(at_once < shape.images ? size : largest);
  for (int64_t image = 0; image < shape.images; image += at_once) {
    const Tiling<kOut> tiling = tiles_of(std::min(at_once, shape.images - image));
    const int64_t pixel = image * pixels;
    const Channels first = {entry + pixel * shape.features, shape.features, shape.features};
    float* parts = intermediates + pixel * intermediate_step;
    for (int64_t k = 0; k < kDenseConvs; ++k) {
      const int64_t from = read_by(shape, k), to = written_by(shape, k), padded = round_up(to, kLane);
      const int64_t step = k < kIntermediates ? intermediate_step : to,
                    known = keeps ? std::max<int64_t>(0, k - 1) * shape.growth : 0;
      if (image == 0) {
        transform_weights<kOut>(1, from, to, weights.get() + begins[k], parallel_for,
                                [&](int64_t, int64_t c) { return taps(k, c); });
      }
      const Channels second = {parts + known, intermediate_step, k * shape.growth - known};
      const Results results = {k < kIntermediates ? parts + k * shape.growth : last + pixel * to, step, to, 0};
      parallel_for(tiling.groups(), 1, [&](int64_t begin, int64_t end) {
        const Scratch v(keeps ? 0 : tiling.group_numbers(all)), m(tiling.group_numbers(padded));
        std::vector<float> zeros(std::max(shape.features, intermediate_step)), unwanted(to);
        std::vector<uint8_t> bytes(8 * sign_bytes(to));
        const auto read_tile = [&](Place place, float* tile, int64_t v_step) {
          const auto add = [&](const Channels& channels, float* at) {
            input_transform<kOut>(channels.plane(place.image, shape.height, shape.width, zeros.data()), place.h - 1,
                                  place.w - 1, at, v_step);
          };
          if (k == 0 || !keeps) add(first, tile);
          if (k > 0) add(second, tile + shape.features + known);
        };
        const auto write_results = [&](Place place, const float* products, int64_t m_step) {
          write_tile(tiling, place, products, m_step, results, unwanted.data(),
                     [&](float* result, Place at) { finish(k, result, pixel + tiling.index(at), bytes.data()); });
        };
        for (int64_t group = begin; group < end; ++group) {
          multiply_group(tiling, group, weights.get() + begins[k], from, padded,
                         keeps ? kept.get() + group * tiling.group_numbers(all) : v.get(), all, m.get(), read_tile,
                         write_results);
        }
      });
    }
  }
}

template <typename TapsOf, typename Finish>
void chain(const float* entry, float* intermediates, float* last, DenseShape shape, int64_t threads,
           ParallelFor parallel_for, TapsOf taps, Finish finish) {
  with_tiles(shape.height, shape.width, [&](auto out) {
    chain_in<decltype(out)::value>(entry, intermediates, last, shape, threads, parallel_for, taps, finish);
  });
}

}  // namespace

void dense_block(const float* x, const std::vector<Weights>& weights, const std::vector<const float*>& biases,
                 DenseShape shape, DenseFactors factors, float* y, float* intermediates, uint8_t* sign_mask,
                 int64_t threads, ParallelFor parallel_for) {
  const int64_t bytes_each = sign_bytes(shape.growth);
  const std::vector<float> slopes(shape.growth, factors.slope);
  const auto taps = [&](int64_t k, int64_t c) {
    const Weights& weight = weights[k];
    return Taps{weight.taps + c * weight.steps.input_step, weight.steps.output_step, weight.steps.tap_step};
  };
  const auto finish = [&](int64_t k, float* pixel, int64_t index, uint8_t* bytes) {
    if (k == kIntermediates)
      return add_to_residual(pixel, biases[k], factors.gain, x + index * shape.features, shape.features);
    activate(pixel, biases[k], slopes.data(),
             sign_mask ? sign_mask + (index * kIntermediates + k) * bytes_each : nullptr, bytes, shape.growth);
  };
  chain(x, intermediates, y, shape, threads, parallel_for, taps, finish);
}

void dense_block_input_grad(const float* dy, const std::vector<Weights>& weights, const uint8_t* sign_mask,
                            DenseShape shape, DenseFactors factors, float* dx, float* dintermediates, int64_t threads,
                            ParallelFor parallel_for) {
  const int64_t bytes_each = sign_bytes(shape.growth);
  const std::vector<float> slopes(shape.growth, factors.slope), no_bias(shape.features);
  // Convolution k of the chain computes the gradient of the result of convolution `kIntermediates - 1 - k` of the
  // block.
  const auto taps = [&](int64_t k, int64_t c) {
    const int64_t intermediate = c - shape.features;  // index among the channels that are read, after those of dy
    const Weights& weight =
        weights[intermediate < 0 ? kIntermediates : kIntermediates - 1 - intermediate / shape.growth];
    const int64_t output = intermediate < 0 ? c : intermediate % shape.growth;
    const int64_t input = k < kIntermediates ? shape.features + (kIntermediates - 1 - k) * shape.growth : 0;
    return Taps{weight.taps + output * weight.steps.output_step + input * weight.steps.input_step,
                weight.steps.input_step, weight.steps.tap_step, intermediate < 0 ? factors.gain : 1}
        .flipped();
  };
  const auto finish = [&](int64_t k, float* pixel, int64_t index, uint8_t* bytes) {
    if (k == kIntermediates) {
      return add_to_residual(pixel, no_bias.data(), 1, dy + index * shape.features, shape.features);
    }
    leaky_relu_backward_pixel(pixel, slopes.data(),
                              sign_mask + (index * kIntermediates + kIntermediates - 1 - k) * bytes_each, bytes,
                              shape.growth);
  };
  chain(dy, dintermediates, dx, shape, threads, parallel_for, taps, finish);
}

void dense_block_weight_grad(const float* x, const float* intermediates, const float* dy, const float* dintermediates,
                             DenseShape shape, DenseFactors factors, const std::vector<float*>& grads,
                             const std::vector<WeightSteps>& steps, ParallelFor parallel_for) {
  const int64_t intermediate_step = kIntermediates * shape.growth;
  std::vector<GradOf> convs;
  for (int64_t k = 0; k < kDenseConvs; ++k) {
    const Channels dz = k < kIntermediates ? Channels{dintermediates + (kIntermediates - 1 - k) * shape.growth,
                                                      intermediate_step, shape.growth}
                                           : Channels{dy, shape.features, shape.features};
    convs.push_back({dz, read_by(shape, k), k < kIntermediates ? 1 : factors.gain, grads[k], steps[k]});
  }
  weight_grad({{x, shape.features, shape.features}, {intermediates, intermediate_step, intermediate_step}}, convs,
              {1, shape.images, shape.height, shape.width, 1}, parallel_for);
}

}  // namespace andfast::cpu
