// The gradients of 3x3 convolutions' weights in float32, by Winograd's algorithm (winograd.h): of one convolution for
// each of N networks, or of several that read growing parts of the same channels.
#include "weight_grad.h"

#include <vector>

namespace andfast::cpu {
namespace {

// Tiles between two accesses of the sums: more where the sums are large compared to the input of a tile.
template <int kOut>
int64_t tiles_at_once(int64_t channels) {
  return channels > 128 ? 256 / kOut : 32;
}

// to += from.
ANDFAST_CLONES void add_up(const float* from, float* to, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) to[i] += from[i];
}

template <int kOut>
void weight_grad_in(const std::vector<Channels>& x, const std::vector<GradOf>& convs, GradFrame frame,
                    ParallelFor parallel_for) {
  constexpr int64_t kElements = Sizes<kOut>::kElements;
  const Tiling<kOut> tiling = {frame.images / frame.networks, frame.height + 2 * frame.padding - 2,
                               frame.width + 2 * frame.padding - 2, 1};
  int64_t inputs = 0, widest = 0, outputs = 0, sum = 0;  // sum: the size of all sums
  for (const Channels& channels : x) inputs += channels.count, widest = std::max(widest, channels.count);
  inputs = round_up(inputs, kLane);
  // Of each convolution: where its outputs and its sums, (kElements, rows, columns), begin.
  std::vector<int64_t> first_output, first_sum, rows, columns;
  for (const GradOf& conv : convs) {
    first_output.push_back(outputs), first_sum.push_back(sum);
    rows.push_back(round_up(conv.dz.count, kRows)), columns.push_back(round_up(conv.inputs, kLane));
    widest = std::max(widest, conv.dz.count);
    outputs += rows.back(), sum += kElements * rows.back() * columns.back();
  }
  const Gemm product = fastest_gemm();

  // A network's tiles are split into parts with separate sums, which are added in order. The number of parts depends on
  // the shape alone, so the rounding does, too: enough parts for many cores, each large enough to pay for the addition.
  constexpr int64_t kParts = 16, kTilesOfAPart = 512 / (kOut * kOut);
  const int64_t tiles = tiling.count();
  const int64_t parts =
      std::clamp<int64_t>(std::min(tiles / kTilesOfAPart, kParts / frame.networks), 1, std::max<int64_t>(1, tiles));
  // Not initialised: a part's first products overwrite it.
  const Scratch sums(frame.networks * parts * sum);
  parallel_for(frame.networks * parts, 1, [&](int64_t begin, int64_t end) {
    const int64_t at_once = tiles_at_once<kOut>(std::max(inputs, outputs));
    const int64_t v_step = element_step(at_once, inputs), g_step = element_step(at_once, outputs);
    const Scratch v(kElements * v_step), g(kElements * g_step);
    std::fill(v.get(), v.get() + kElements * v_step, 0.0f), std::fill(g.get(), g.get() + kElements * g_step, 0.0f);
    std::vector<float> zeros(widest);
    for (int64_t part = begin; part < end; ++part) {
      const int64_t network = part / parts, number = part % parts, first = network * tiling.images;
      const int64_t stop = tiles * (number + 1) / parts;
      bool begun = false;
      int64_t tile = tiles * number / parts;
      do {  // runs once without tiles, too: a sum of no products is zero
        const int64_t count = std::min(at_once, stop - tile);
        for (int64_t t = 0; t < count; ++t) {
          const Place place = tiling.at(tile + t);
          float* to = v.get() + t * inputs;
          for (const Channels& channels : x) {
            const Plane plane = channels.plane(first + place.image, frame.height, frame.width, zeros.data());
            input_transform<kOut>(plane, place.h - frame.padding, place.w - frame.padding, to, v_step);
            to += channels.count;
          }
          for (size_t k = 0; k < convs.size(); ++k) {
            const Plane plane = convs[k].dz.plane(first + place.image, tiling.height, tiling.width, zeros.data());
            gradient_transform<kOut>(plane, place.h, place.w, g.get() + t * outputs + first_output[k], g_step);
          }
        }
        for (int64_t e = 0; e < kElements; ++e) {
          for (size_t k = 0; k < convs.size(); ++k) {
            product(g.get() + e * g_step + first_output[k], 1, outputs, v.get() + e * v_step, inputs, kLane,
                    sums.get() + part * sum + first_sum[k] + e * rows[k] * columns[k], columns[k], rows[k], columns[k],
                    count, begun);
          }
        }
        begun = true;
        tile += count;
      } while (tile < stop);
    }
  });

  constexpr int64_t kPieces = 16;
  parallel_for(frame.networks * kPieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t from = sum * (i % kPieces) / kPieces, count = sum * (i % kPieces + 1) / kPieces - from;
      float* total = sums.get() + i / kPieces * parts * sum + from;
      for (int64_t part = 1; part < parts; ++part) add_up(total + part * sum, total, count);
    }
  });
  for (size_t k = 0; k < convs.size(); ++k) {
    const GradOf& conv = convs[k];
    parallel_for(frame.networks * conv.dz.count, 4, [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(9 * conv.inputs);
      for (int64_t row = begin; row < end; ++row) {
        const int64_t network = row / conv.dz.count, o = row % conv.dz.count;
        weight_gradient_transform<kOut>(sums.get() + network * parts * sum + first_sum[k] + o * columns[k],
                                        rows[k] * columns[k], conv.factor,
                                        conv.grad + network * conv.steps.network_step + o * conv.steps.output_step,
                                        conv.steps.input_step, conv.steps.tap_step, conv.inputs, scratch.data());
      }
    });
  }
}

}  // namespace

void weight_grad(const std::vector<Channels>& x, const std::vector<GradOf>& convs, GradFrame frame,
                 ParallelFor parallel_for) {
  with_tiles(frame.height + 2 * frame.padding - 2, frame.width + 2 * frame.padding - 2,
             [&](auto out) { weight_grad_in<decltype(out)::value>(x, convs, frame, parallel_for); });
}

void conv_weight_grad(const float* x, const float* dz, float* grad, ConvShape shape, int64_t padding, WeightSteps steps,
                      ParallelFor parallel_for) {
  const GradFrame frame = {shape.networks, shape.images, shape.height, shape.width, padding};
  const GradOf conv = {{dz, shape.outputs, shape.outputs}, shape.inputs, 1, grad, steps};
  weight_grad({{x, shape.inputs, shape.inputs}}, {conv}, frame, parallel_for);
}

}  // namespace andfast::cpu
