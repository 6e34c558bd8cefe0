// The generators' convolutions where nothing but the result is wanted, in float32 and in large tiles (large_tiles.h).
// Training takes F(2 x 2, 3 x 3) (winograd.h), which needs more products and rounds ten times finer.
// andfast/ops/large_tiles.py says what the operators compute.
#include <algorithm>

#include "large_tiles.h"

namespace andfast::cpu {
namespace {

// Tiles that are worked on together at most: enough that the weights are not fetched from afar too often, so few that
// their products stay in a second-level cache.
constexpr int64_t kChunk = 24;

constexpr int64_t kGrown = kDenseConvs - 1;

// Tiles of a group of rows in a dense block, for each thread, at least.
constexpr int64_t kGroup = 72;

Rows<const float> reading(const Rows<float>& rows) {
  return {rows.pixels, rows.step, rows.row_step, rows.image_rows, rows.held, rows.channels};
}

}  // namespace

void large_conv(const float* x, const Weights& weights, const float* bias, const float* slope, float* y,
                ConvShape shape, ParallelFor parallel_for) {
  const LargeTiling tiling = {shape.images, shape.height, shape.width};
  const LargeWeights u(weights, shape.inputs, shape.outputs, parallel_for);
  const auto pixels = whole_images(x, shape.images, shape.height, shape.width, shape.inputs);
  const auto results = whole_images(y, shape.images, shape.height, shape.width, shape.outputs);
  const int64_t v_step = large_step(kChunk, u.inputs), m_step = large_step(kChunk, u.padded);
  const int64_t count = tiling.count();
  parallel_for((count + kChunk - 1) / kChunk, 1, [&](int64_t begin, int64_t end) {
    const Scratch v(kLargeElements * v_step), m(kLargeElements * m_step);
    for (int64_t i = begin; i < end; ++i) {
      const Chunk chunk = {i * kChunk, std::min(kChunk, count - i * kChunk)};
      enter_tiles(tiling, chunk, pixels, v.get(), u.inputs, v_step);
      multiply_tiles(chunk.count, v.get(), u.inputs, v_step, u, m.get(), m_step);
      leave_tiles(tiling, chunk, m.get(), u.padded, m_step, results, {bias, slope, nullptr, 0});
    }
  });
}

// Each feature is transformed once, for all convolutions that read it. To keep the transformed tiles of a whole image
// would take far more memory than all its features, so the convolutions follow each other over the image, in groups of
// rows of tiles: each is a group behind the one before it, which has then written the row of pixels below, too. A group's
// transformed tiles are kept until the last convolution has passed, results for two groups and a row.
void large_dense_block(const float* x, const std::vector<Weights>& weights, const std::vector<const float*>& biases,
                       DenseShape shape, DenseFactors factors, float* y, int64_t threads, ParallelFor parallel_for) {
  const LargeTiling tiling = {shape.images, shape.height, shape.width};
  const int64_t all = shape.features + kGrown * shape.growth, tile_rows = tiling.images * tiling.down();
  const int64_t group_rows = std::min(tile_rows, (kGroup * threads + tiling.across() - 1) / tiling.across());
  const int64_t groups = (tile_rows + group_rows - 1) / group_rows, group_tiles = group_rows * tiling.across();
  const int64_t chunks = (group_tiles + kChunk - 1) / kChunk;
  const int64_t v_step = large_step(kChunk, all), chunk_size = kLargeElements * v_step;
  const Scratch v(kDenseConvs * chunks * chunk_size);

  const Rows<const float> entry = whole_images(x, shape.images, shape.height, shape.width, shape.features);
  const auto last = whole_images(y, shape.images, shape.height, shape.width, shape.features);
  const int64_t held = (2 * group_rows + 1) * kSide, row_step = shape.width * shape.growth + kLane;
  const Scratch grown(kGrown * held * row_step);
  const auto part = [&](int64_t k) {
    return Rows<float>{grown.get() + k * held * row_step, shape.growth, row_step, tiling.down() * kSide, held, shape.growth};
  };
  std::vector<LargeWeights> u;
  for (int64_t k = 0; k < kDenseConvs; ++k) {
    u.emplace_back(weights[k], shape.features + k * shape.growth, k < kGrown ? shape.growth : shape.features, parallel_for);
  }
  const std::vector<float> slopes(shape.growth, factors.slope);

  const auto convolve = [&](int64_t k, int64_t group) {
    const int64_t first = group * group_tiles, count = std::min(group_tiles, tiling.count() - first);
    const int64_t m_step = large_step(kChunk, u[k].padded);
    const LargeTail tail = k < kGrown ? LargeTail{biases[k], slopes.data(), nullptr, 0}
                                      : LargeTail{biases[k], nullptr, &entry, factors.gain};
    parallel_for((count + kChunk - 1) / kChunk, 1, [&](int64_t begin, int64_t end) {
      const Scratch m(kLargeElements * m_step);
      for (int64_t i = begin; i < end; ++i) {
        const Chunk chunk = {first + i * kChunk, std::min(kChunk, count - i * kChunk)};
        float* const tiles = v.get() + (group % kDenseConvs * chunks + i) * chunk_size;
        const int64_t known = k > 0 ? shape.features + (k - 1) * shape.growth : 0;
        enter_tiles(tiling, chunk, k > 0 ? reading(part(k - 1)) : entry, tiles + known, all, v_step);
        multiply_tiles(chunk.count, tiles, all, v_step, u[k], m.get(), m_step);
        leave_tiles(tiling, chunk, m.get(), u[k].padded, m_step, k < kGrown ? part(k) : last, tail);
      }
    });
  };
  for (int64_t step = 0; step < groups + kGrown; ++step) {
    for (int64_t k = 0; k < kDenseConvs; ++k) {
      if (step >= k && step - k < groups) convolve(k, step - k);
    }
  }
}

}  // namespace andfast::cpu
