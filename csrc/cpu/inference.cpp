// The generators' convolutions for inference, in float32 and with large tiles (large_tiles.h). Training uses smaller
// ones (winograd.h), which need more products but round several times less. andfast/ops/conv_chain.py says what the
// operators compute.
//
// A chain of convolutions proceeds over the image in groups of rows of tiles. Each convolution soon reads what the one
// before has written, and only a few rows between them are kept.
#include <algorithm>
#include <memory>

#include "large_tiles.h"

namespace andfast::cpu {
namespace {

// The largest number of tiles processed together: the products, and in a chain the transformed tiles, too, must fit
// into a second-level cache of half a megabyte. A multiple of gemm's register tiles.
constexpr int64_t kChunk = 12;

// The least number of tiles per thread in a group of rows.
constexpr int64_t kGroup = 72;

int64_t rows_of_group(const LargeTiling& tiling, int64_t threads) {
  const int64_t rows = (kGroup * threads + tiling.across() - 1) / tiling.across();
  return std::min(rows, std::max<int64_t>(1, tiling.images * tiling.down()));
}

int64_t chunks_of(int64_t tiles) { return (tiles + kChunk - 1) / kChunk; }

// Convolutions of one image, one after the other.
class Chain {
 public:
  Chain(const std::vector<ChainConv>& convs, int64_t height, int64_t width, int64_t threads, ParallelFor parallel_for)
      : parallel_for_(parallel_for) {
    links_.reserve(convs.size());
    for (const ChainConv& conv : convs) {
      height *= conv.repeat, width *= conv.repeat;
      const LargeTiling tiling = {1, height, width};
      links_.push_back({conv, tiling, rows_of_group(tiling, threads),
                        LargeWeights(conv.weights, conv.inputs, conv.outputs, parallel_for)});
    }
    hold_rows();
  }

  void run(const float* x, int64_t height, int64_t width, float* y) {
    for (Link& link : links_) link.done = 0;
    Link &first = links_.front(), &last = links_.back();
    first.source = {whole_images(x, 1, height, width, first.conv.inputs), first.conv.repeat};
    last.results = whole_images(y, 1, last.tiling.height, last.tiling.width, last.conv.outputs);
    advance(links_.size() - 1, last.tiling.down());
  }

 private:
  struct Link {
    ChainConv conv;
    LargeTiling tiling;
    int64_t group_rows;
    LargeWeights weights;
    Source source = {};
    Rows<float> results = {};
    int64_t done = 0;  // rows of tiles
  };

  // Between two convolutions: the rows that the next one's group reads, and those that the first one may be ahead.
  void hold_rows() {
    std::vector<int64_t> begins = {0};
    for (size_t k = 0; k + 1 < links_.size(); ++k) {
      Link &from = links_[k], &to = links_[k + 1];
      const int64_t held = std::min(from.group_rows + to.group_rows + 1, from.tiling.down()) * kOutputSide;
      const int64_t row_step = from.tiling.width * from.conv.outputs + kLane;  // not a power of two: see large_step
      from.results = {nullptr, from.conv.outputs, row_step, 0, held};
      begins.push_back(begins.back() + held * row_step);
    }
    rows_ = std::make_unique<Scratch>(begins.back());
    for (size_t k = 0; k + 1 < links_.size(); ++k) {
      links_[k].results.pixels = rows_->get() + begins[k];
      links_[k + 1].source = {links_[k].results, links_[k + 1].conv.repeat};
    }
  }

  // Computes the first `rows` rows of tiles of convolution k, and before them the rows that they read.
  void advance(size_t k, int64_t rows) {
    Link& link = links_[k];
    while (link.done < rows) {
      const int64_t end = std::min(link.done + link.group_rows, link.tiling.down());
      if (k > 0)
        advance(k - 1, std::min(end * kOutputSide, link.tiling.height - 1) / link.conv.repeat / kOutputSide + 1);
      convolve(link, link.done * link.tiling.across(), end * link.tiling.across());
      link.done = end;
    }
  }

  void convolve(const Link& link, int64_t begin_tile, int64_t end_tile) {
    const int64_t inputs = link.weights.inputs, padded = link.weights.padded;
    const int64_t v_step = element_step(kChunk, inputs), m_step = element_step(kChunk, padded);
    parallel_for_(chunks_of(end_tile - begin_tile), 1, [&](int64_t begin, int64_t end) {
      const Scratch v(kLargeElements * v_step), m(kLargeElements * m_step);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = begin_tile + i * kChunk;
        const Chunk chunk = {first, std::min(kChunk, end_tile - first)};
        input_transform_tiles(link.tiling, chunk, link.source, v.get(), inputs, v_step);
        link.weights.multiply(chunk.count, v.get(), inputs, v_step, m.get(), m_step);
        output_transform_tiles(link.tiling, chunk, m.get(), padded, m_step, link.results,
                               {link.conv.bias, link.conv.slope, nullptr, 0});
      }
    });
  }

  ParallelFor parallel_for_;
  std::vector<Link> links_;
  std::unique_ptr<Scratch> rows_;
};

}  // namespace

void large_chain(const float* x, const std::vector<ChainConv>& convs, int64_t images, int64_t height, int64_t width,
                 float* y, int64_t threads, ParallelFor parallel_for) {
  Chain chain(convs, height, width, threads, parallel_for);
  int64_t size = height * width * convs.back().outputs;
  for (const ChainConv& conv : convs) size *= conv.repeat * conv.repeat;
  for (int64_t image = 0; image < images; ++image) {
    chain.run(x + image * height * width * convs.front().inputs, height, width, y + image * size);
  }
}

// Each feature is transformed once, for all convolutions that read it: the transformed tiles of a group are kept until
// the last convolution has passed. Each convolution is one group behind the previous one, so that the row of pixels
// below its own group is already written.
void large_dense_block(const float* x, const std::vector<Weights>& weights, const std::vector<const float*>& biases,
                       DenseShape shape, DenseFactors factors, float* y, int64_t threads, ParallelFor parallel_for) {
  const LargeTiling tiling = {shape.images, shape.height, shape.width};
  const int64_t all = shape.features + kIntermediates * shape.growth, tile_rows = tiling.images * tiling.down();
  const int64_t group_rows = rows_of_group(tiling, threads), group_tiles = group_rows * tiling.across();
  const int64_t groups = (tile_rows + group_rows - 1) / group_rows, chunks = chunks_of(group_tiles);
  const int64_t v_step = element_step(kChunk, all), chunk_size = kLargeElements * v_step;
  const Scratch v(kDenseConvs * chunks * chunk_size);

  const Rows<const float> entry = whole_images(x, shape.images, shape.height, shape.width, shape.features);
  const auto last = whole_images(y, shape.images, shape.height, shape.width, shape.features);
  const int64_t held = (2 * group_rows + 1) * kOutputSide, row_step = shape.width * shape.growth + kLane;
  const Scratch intermediates(kIntermediates * held * row_step);
  const auto part = [&](int64_t k) {
    float* const first = intermediates.get() + k * held * row_step;
    return Rows<float>{first, shape.growth, row_step, tiling.down() * kOutputSide, held};
  };
  std::vector<LargeWeights> u;
  for (int64_t k = 0; k < kDenseConvs; ++k) {
    const int64_t outputs = k < kIntermediates ? shape.growth : shape.features;
    u.emplace_back(weights[k], shape.features + k * shape.growth, outputs, parallel_for);
  }
  const std::vector<float> slopes(shape.growth, factors.slope);

  const auto convolve = [&](int64_t k, int64_t group) {
    const int64_t first = group * group_tiles, count = std::min(group_tiles, tiling.count() - first);
    const int64_t m_step = element_step(kChunk, u[k].padded);
    const LargeEpilogue epilogue = k < kIntermediates ? LargeEpilogue{biases[k], slopes.data(), nullptr, 0}
                                                      : LargeEpilogue{biases[k], nullptr, &entry, factors.gain};
    parallel_for(chunks_of(count), 1, [&](int64_t begin, int64_t end) {
      const Scratch m(kLargeElements * m_step);
      for (int64_t i = begin; i < end; ++i) {
        const Chunk chunk = {first + i * kChunk, std::min(kChunk, count - i * kChunk)};
        float* const tiles = v.get() + (group % kDenseConvs * chunks + i) * chunk_size;
        const int64_t known = k > 0 ? shape.features + (k - 1) * shape.growth : 0;
        input_transform_tiles(tiling, chunk, {k > 0 ? part(k - 1) : entry}, tiles + known, all, v_step);
        u[k].multiply(chunk.count, tiles, all, v_step, m.get(), m_step);
        output_transform_tiles(tiling, chunk, m.get(), u[k].padded, m_step, k < kIntermediates ? part(k) : last,
                               epilogue);
      }
    });
  };
  for (int64_t step = 0; step < groups + kIntermediates; ++step) {
    for (int64_t k = 0; k < kDenseConvs; ++k) {
      if (step >= k && step - k < groups) convolve(k, step - k);
    }
  }
}

}  // namespace andfast::cpu
