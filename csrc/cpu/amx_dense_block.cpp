// ESRGAN's dense block in bfloat16, and the gradient of its input, by the matrix tiles (AMX) of x86 processors.
// andfast/ops/dense_block.py says what the operators compute, dense_block.cpp why both passes are the same chain.
//
// An image is a line of pixels that hold all parts of the dense block, each in whole blocks of 32 channels, with zeros
// between its rows, above and below them. So a tap of a convolution is the line, shifted, and a convolution is a sum of
// products of 32 consecutive pixels by 32 outputs: over taps, and blocks of channels. Results between rows are dropped.
#include <algorithm>
#include <cstring>
#include <vector>

#include "gemm.h"
#include "rows.h"
#include "scratch.h"

#if defined(__x86_64__) && defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define ANDFAST_AMX
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace andfast::cpu {
namespace {

constexpr int64_t kBlock = 32;                    // pixels, outputs and channels that are multiplied together
constexpr int64_t kTile = 16 * 32;                // bfloat16 in a tile
constexpr int64_t kWeights = 9 * 2 * kTile;       // from a block of channels to a block of outputs
constexpr int64_t kLineBytes = int64_t{8} << 20;  // of the images that are processed together, which stay in the cache

// `multiply` computes `sums` (32 pixels, 32 outputs) from 32 pixels that are `step` apart, beginning at pixels +
// taps[t] for tap t, and from `blocks` blocks of channels. The weights are, for each tap, block and 16 outputs, a
// tile: 16 pairs of channels, by 16 outputs, by 2. A thread calls `begin` before, and `end` after its products.
struct Products {
  void (*begin)();
  void (*multiply)(const bfloat16* pixels, int64_t step, const int64_t* taps, int64_t blocks, const bfloat16* weights,
                   float* sums);
  void (*end)();
};

// What the tiles compute, in their order: even and odd channels are summed apart.
ANDFAST_CLONES void multiply_plainly(const bfloat16* pixels, int64_t step, const int64_t* taps, int64_t blocks,
                                     const bfloat16* weights, float* sums) {
  std::fill(sums, sums + kBlock * kBlock, 0.0f);
  for (int64_t k = 0; k < 9 * blocks; ++k) {
    for (int64_t half = 0; half < kBlock * 2; ++half) {  // 16 of a pixel's outputs
      const bfloat16* a = pixels + half / 2 * step + taps[k / blocks] + k % blocks * kBlock;
      const bfloat16* b = weights + (2 * k + half % 2) * kTile;
      float even[16] = {}, odd[16] = {};
      for (int64_t pair = 0; pair < 16; ++pair, a += 2, b += 32) {
#pragma omp simd
        for (int64_t n = 0; n < 16; ++n)
          even[n] += load(a[0]) * load(b[2 * n]), odd[n] += load(a[1]) * load(b[2 * n + 1]);
      }
      for (int64_t n = 0; n < 16; ++n) sums[half * 16 + n] += even[n] + odd[n];
    }
  }
}
constexpr Products kPlain = {[] {}, multiply_plainly, [] {}};

#if defined(ANDFAST_AMX)
__attribute__((target("amx-tile"))) void configure_tiles() {
  struct alignas(64) Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
  static Config config;
  asm volatile("" ::"r"(&config) : "memory");  // GCC's intrinsic does not say that it reads all of it
  _tile_loadconfig(&config);
}
__attribute__((target("amx-tile"))) void release_tiles() { _tile_release(); }

__attribute__((target("amx-tile,amx-bf16,avx512f"))) void multiply_tiles(const bfloat16* pixels, int64_t step,
                                                                         const int64_t* taps, int64_t blocks,
                                                                         const bfloat16* weights, float* sums) {
  asm volatile("" ::: "memory");
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t tap = 0; tap < 9; ++tap) {
    const bfloat16* first = pixels + taps[tap];
    for (int64_t block = 0; block < blocks; ++block, first += kBlock, weights += 2 * kTile) {
      _tile_loadd(6, weights, 64);
      _tile_loadd(7, weights + kTile, 64);
      _tile_loadd(4, first, step * 2);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, first + 16 * step, step * 2);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums, 128);
  _tile_stored(1, sums + 16, 128);
  _tile_stored(2, sums + 16 * kBlock, 128);
  _tile_stored(3, sums + 16 * kBlock + 16, 128);
}
constexpr Products kTiles = {configure_tiles, multiply_tiles, release_tiles};
#else
constexpr Products kTiles = kPlain;  // never used: amx_available() is false
#endif

// The results of a block of outputs for consecutive pixels of a row: sums[i * kBlock + c] of pixel i. `part` is where
// the next convolutions read them.
struct Results {
  const float* sums;
  int64_t pixels, channels;
  bfloat16* part;
  int64_t step;
};

// Copies the results to the operator's, and writes zeros past the channels. After all pixels: a vector load would stall
// on the narrower stores just before it.
ANDFAST_BODY void copy_results(const Results& results, bfloat16* to, int64_t to_step) {
  for (int64_t i = 0; i < results.pixels; ++i, to += to_step) {
    bfloat16* part = results.part + i * results.step;
    if (results.channels == kBlock) {
      std::memcpy(to, part, kBlock * sizeof *to);
    } else {
      std::memcpy(to, part, results.channels * sizeof *to);
      std::memset(part + results.channels, 0, (kBlock - results.channels) * sizeof *to);
    }
  }
}

// y and the sign mask are `y_step` and `mask_step` from one pixel to the next; `sign_mask` may be null.
ANDFAST_CLONES void activate_block(const Results& results, const float* bias, float slope, bfloat16* y, int64_t y_step,
                                   uint8_t* sign_mask, int64_t mask_step) {
  for (int64_t i = 0; i < results.pixels; ++i) {
    bfloat16* part = results.part + i * results.step;
    uint8_t bytes[kBlock];
#pragma omp simd
    for (int64_t c = 0; c < kBlock; ++c) {
      const float z = results.sums[i * kBlock + c] + bias[c];
      bytes[c] = !(z > 0);
      store(part[c], (z > 0 ? z : 0.0f) + slope * (z > 0 ? 0.0f : z));
    }
    if (!sign_mask) continue;
    std::fill(bytes + results.channels, bytes + kBlock, uint8_t{0});
    for (int64_t j = 0; j < sign_bytes(results.channels); ++j) sign_mask[i * mask_step + j] = pack_bits(bytes + 8 * j);
  }
  copy_results(results, y, y_step);
}

ANDFAST_CLONES void activate_block_backward(const Results& results, float slope, bfloat16* dz, int64_t dz_step,
                                            const uint8_t* sign_mask, int64_t mask_step) {
  for (int64_t i = 0; i < results.pixels; ++i) {
    bfloat16* part = results.part + i * results.step;
    uint32_t bits = 0;
    std::memcpy(&bits, sign_mask + i * mask_step, sign_bytes(results.channels));
#pragma omp simd
    for (int c = 0; c < kBlock; ++c) {
      store(part[c], results.sums[i * kBlock + c] * (bits >> c & 1 ? slope : 1.0f));
    }
  }
  copy_results(results, dz, dz_step);
}

ANDFAST_CLONES void add_block_to_residual(const Results& results, const float* bias, float gain, const bfloat16* x,
                                          bfloat16* y, int64_t step) {
  for (int64_t i = 0; i < results.pixels; ++i) {
#pragma omp simd
    for (int64_t c = 0; c < results.channels; ++c) {
      store(y[i * step + c], load(x[i * step + c]) + gain * (results.sums[i * kBlock + c] + bias[c]));
    }
  }
}

// The weights from a part of the channels: from channel i to output o at taps + i * from + o * to + t * tap.
struct PartWeights {
  const bfloat16* taps;
  int64_t from, to, tap;
  float gain = 1;
};

// `packed` is the first tap's pair of tiles; those of the next tap follow `tap_step` after them.
void pack_weights(const PartWeights& weights, int64_t inputs, int64_t outputs, bfloat16* packed, int64_t tap_step) {
  for (int64_t t = 0; t < 9; ++t) std::memset(packed + t * tap_step, 0, 2 * kTile * sizeof *packed);
  for (int64_t o = 0; o < outputs; ++o) {
    for (int64_t i = 0; i < inputs; ++i) {
      const bfloat16* from = weights.taps + i * weights.from + o * weights.to;
      bfloat16* to = packed + o / 16 * kTile + i / 2 * 32 + o % 16 * 2 + i % 2;
      for (int64_t t = 0; t < 9; ++t) to[t * tap_step] = from[t * weights.tap];
    }
  }
  for (int64_t t = 0; t < 9 && weights.gain != 1; ++t, packed += tap_step) {
    for (int64_t i = 0; i < 2 * kTile; ++i) store(packed[i], weights.gain * load(packed[i]));
  }
}

// The line of an image. Each of its rows is preceded by a pixel of zeros, which is the end of the row before, too.
struct Line {
  explicit Line(DenseShape shape)
      : shape(shape),
        entry_blocks(round_up(shape.features, kBlock) / kBlock),
        part_blocks(round_up(shape.growth, kBlock) / kBlock),
        step(read_by(kIntermediates) * kBlock),
        row(shape.width + 1),
        pixels(shape.height * row),
        blocks(round_up(pixels, kBlock) / kBlock),
        size((blocks * kBlock + 2 * row + 2) * step) {}
  // Blocks of channels that convolution k reads, and the number of its outputs.
  int64_t read_by(int64_t k) const { return entry_blocks + k * part_blocks; }
  int64_t written_by(int64_t k) const { return k < kIntermediates ? shape.growth : shape.features; }

  // Writes row h of the entry, or zeros for the row above and below the image.
  void fill_row(const bfloat16* image, int64_t h, bfloat16* line) const {
    bfloat16* pixel = line + (h + 1) * row * step;
    const bool within = h >= 0 && h < shape.height;
    const int64_t zeros = within ? 1 : h < 0 ? row : row + 1;
    std::memset(pixel, 0, zeros * step * sizeof *pixel);
    const bfloat16* from = image + h * shape.width * shape.features;
    for (int64_t w = 0; within && w < shape.width; ++w, from += shape.features) {
      pixel += step;
      std::memcpy(pixel, from, shape.features * sizeof *pixel);
      std::fill(pixel + shape.features, pixel + entry_blocks * kBlock, bfloat16{0});
    }
  }

  DenseShape shape;
  int64_t entry_blocks, part_blocks;
  int64_t step, row;             // from a pixel to the next, in numbers; from a row to the next, in pixels
  int64_t pixels, blocks, size;  // between the first and last row; blocks of these; numbers of the whole line
};

// Convolution k reads the entry and the first k intermediates: parts 0 to k. of(k, part) are its PartWeights; finish(k,
// results, pixel, output) applies the epilogue to pixels from `pixel` and outputs from `output` on.
template <typename WeightsOfPart, typename Finish>
void chain(const bfloat16* entry, DenseShape shape, const Products& products, ParallelFor parallel_for,
           WeightsOfPart of, Finish finish) {
  const Line line(shape);
  int64_t taps[9];  // from the upper left neighbour of a pixel
  for (int64_t t = 0; t < 9; ++t) taps[t] = (t / 3 * line.row + t % 3) * line.step;
  std::vector<int64_t> begins = {0};
  for (int64_t k = 0; k < kDenseConvs; ++k) {
    begins.push_back(begins[k] + line.read_by(k) * round_up(line.written_by(k), kBlock) / kBlock * kWeights);
  }
  const int64_t at_once =
      std::min(shape.images, std::max<int64_t>(1, kLineBytes / (line.size * int64_t{sizeof(bfloat16)})));
  const Scratch packed(begins.back() / 2), filled(at_once * line.size / 2);
  bfloat16 *weights = reinterpret_cast<bfloat16*>(packed.get()), *lines = reinterpret_cast<bfloat16*>(filled.get());

  for (int64_t image = 0; image < shape.images; image += at_once) {
    const int64_t images = std::min(at_once, shape.images - image), rows = shape.height + 2;
    parallel_for(images * rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const bfloat16* from = entry + (image + i / rows) * shape.height * shape.width * shape.features;
        line.fill_row(from, i % rows - 1, lines + i / rows * line.size);
      }
    });
    for (int64_t k = 0; k < kDenseConvs; ++k) {
      const int64_t blocks = line.read_by(k), outputs = line.written_by(k);
      const int64_t packs = image == 0 ? (begins[k + 1] - begins[k]) / kWeights : 0;
      parallel_for(packs, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t output = i / blocks * kBlock, after_entry = i % blocks - line.entry_blocks;
          const int64_t part = after_entry < 0 ? 0 : 1 + after_entry / line.part_blocks;
          const int64_t input = (part ? after_entry % line.part_blocks : i % blocks) * kBlock;
          PartWeights from = of(k, part);
          from.taps += input * from.from + output * from.to;
          pack_weights(from, std::min(kBlock, (part ? shape.growth : shape.features) - input),
                       std::min(kBlock, outputs - output),
                       weights + begins[k] + i / blocks * blocks * kWeights + i % blocks * 2 * kTile,
                       blocks * 2 * kTile);
        }
      });
      parallel_for(images * line.blocks, 1, [&](int64_t begin, int64_t end) {
        alignas(64) float sums[kBlock * kBlock];
        products.begin();
        for (int64_t i = begin; i < end; ++i) {
          const int64_t first = i % line.blocks * kBlock, last = std::min(first + kBlock, line.pixels);
          bfloat16* above = lines + i / line.blocks * line.size;
          bfloat16* part = above + (line.row + 1) * line.step + blocks * kBlock;
          for (int64_t o = 0; o < outputs; o += kBlock) {
            products.multiply(above + first * line.step, line.step, taps, blocks,
                              weights + begins[k] + o / kBlock * blocks * kWeights, sums);
            for (int64_t p = first, count; p < last; p += count) {  // the parts of rows
              const int64_t h = p / line.row, w = p % line.row;
              count = std::min(last - p, line.row - w);
              if (w == shape.width) continue;  // between two rows
              const Results results = {sums + (p - first) * kBlock, std::min(count, shape.width - w),
                                       std::min(kBlock, outputs - o), part + p * line.step + o, line.step};
              finish(k, results, ((image + i / line.blocks) * shape.height + h) * shape.width + w, o);
            }
          }
        }
        products.end();
      });
    }
  }
}

}  // namespace

bool amx_available() {
#if defined(ANDFAST_AMX) && !defined(ANDFAST_NO_AVX512)
  static const bool available = [] {
    constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kAmxBf16) && (d & kAmxTile) &&
           syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return available;
#else
  return false;
#endif
}

void amx_dense_block(const bfloat16* x, const std::vector<WeightsOf<bfloat16>>& weights,
                     const std::vector<const bfloat16*>& biases, DenseShape shape, DenseFactors factors, bfloat16* y,
                     bfloat16* intermediates, uint8_t* sign_mask, bool emulate, ParallelFor parallel_for) {
  const int64_t bytes_each = sign_bytes(shape.growth), step = kIntermediates * shape.growth;
  std::vector<std::vector<float>> offsets;
  for (int64_t k = 0; k < kDenseConvs; ++k) {
    const int64_t outputs = k < kIntermediates ? shape.growth : shape.features;
    offsets.emplace_back(round_up(outputs, kBlock));
    for (int64_t o = 0; o < outputs; ++o) offsets[k][o] = load(biases[k][o]);
  }
  const auto of = [&](int64_t k, int64_t part) {
    const auto& [taps, steps, outputs] = weights[k];
    const int64_t input = part ? shape.features + (part - 1) * shape.growth : 0;
    return PartWeights{taps + input * steps.input_step, steps.input_step, steps.output_step, steps.tap_step};
  };
  const auto finish = [&](int64_t k, const Results& results, int64_t pixel, int64_t output) {
    const float* bias = offsets[k].data() + output;
    if (k == kIntermediates) {
      const int64_t first = pixel * shape.features + output;
      return add_block_to_residual(results, bias, factors.gain, x + first, y + first, shape.features);
    }
    activate_block(results, bias, factors.slope, intermediates + pixel * step + k * shape.growth + output, step,
                   sign_mask ? sign_mask + (pixel * kIntermediates + k) * bytes_each + output / 8 : nullptr,
                   kIntermediates * bytes_each);
  };
  chain(x, shape, emulate ? kPlain : kTiles, parallel_for, of, finish);
}

void amx_dense_block_input_grad(const bfloat16* dy, const std::vector<WeightsOf<bfloat16>>& weights,
                                const uint8_t* sign_mask, DenseShape shape, DenseFactors factors, bfloat16* dx,
                                bfloat16* dintermediates, bool emulate, ParallelFor parallel_for) {
  const int64_t bytes_each = sign_bytes(shape.growth), step = kIntermediates * shape.growth;
  const float no_bias[kBlock] = {};
  // Convolution k of the chain computes the gradient of the result of convolution `kIntermediates - 1 - k` of the
  // block; part p of the chain is the gradient of the result of convolution `kIntermediates - p`.
  const auto of = [&](int64_t k, int64_t part) {
    const auto& [taps, steps, outputs] = weights[kIntermediates - part];
    const int64_t input = k < kIntermediates ? shape.features + (kIntermediates - 1 - k) * shape.growth : 0;
    return PartWeights{taps + input * steps.input_step + 8 * steps.tap_step, steps.output_step, steps.input_step,
                       -steps.tap_step, part ? 1 : factors.gain};
  };
  const auto finish = [&](int64_t k, const Results& results, int64_t pixel, int64_t output) {
    if (k == kIntermediates) {
      const int64_t first = pixel * shape.features + output;
      return add_block_to_residual(results, no_bias, 1, dy + first, dx + first, shape.features);
    }
    activate_block_backward(results, factors.slope, dintermediates + pixel * step + k * shape.growth + output, step,
                            sign_mask + (pixel * kIntermediates + kIntermediates - 1 - k) * bytes_each + output / 8,
                            kIntermediates * bytes_each);
  };
  chain(dy, shape, emulate ? kPlain : kTiles, parallel_for, of, finish);
}

}  // namespace andfast::cpu
