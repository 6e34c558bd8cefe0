// 3x3 convolutions of N networks in float32 and their gradients, by Winograd's algorithm (winograd.h). Channels of any
// number: matrices are padded to what the products take. andfast/ops/conv.py says what the operators compute.
#include <algorithm>
#include <memory>
#include <vector>

#include "product.h"
#include "winograd.h"

namespace andfast::cpu {
namespace {

// Tiles between two visits of the transformed weights. So few that they, the weights and the products share a
// second-level cache of half a megabyte.
constexpr int64_t kTiles = 16, kGradTiles = 32;

// How far apart the elements of transformed tiles lie: not a power of two, or all sixteen would fall into the same few
// lines of the first-level cache.
constexpr int64_t element_step(int64_t tiles, int64_t channels) { return tiles * channels + kLane; }

constexpr int64_t tiles_along(int64_t results) { return (results + 1) / 2; }

// An image's pixels in (height, width, channels); those outside are zero.
struct Plane {
  const float* pixels;
  int64_t height, width, channels;
  const float* zeros;  // a pixel

  const float* at(int64_t h, int64_t w) const {
    return h < 0 || h >= height || w < 0 || w >= width ? zeros : pixels + (h * width + w) * channels;
  }
};

// Writes B^T d B of the 4 x 4 pixels from (top, left) on: element e of channel c to v[e * step + c].
ANDFAST_CLONES void enter_pixels(const Plane& image, int64_t top, int64_t left, float* v, int64_t step) {
  const float* from[4][4];
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) from[i][j] = image.at(top + i, left + j);
  }
#pragma omp simd
  for (int64_t c = 0; c < image.channels; ++c) {
    Tile d;
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) d.at[i][j] = from[i][j][c];
    }
    const Tile transformed = transform_pixels(d);
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) v[(4 * i + j) * step + c] = transformed.at[i][j];
    }
  }
}

// Writes A g A^T of the 2 x 2 gradients from (top, left) on, as `enter_pixels` does.
ANDFAST_CLONES void enter_gradients(const Plane& image, int64_t top, int64_t left, float* v, int64_t step) {
  const float* from[2][2];
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 2; ++j) from[i][j] = image.at(top + i, left + j);
  }
#pragma omp simd
  for (int64_t c = 0; c < image.channels; ++c) {
    const float g[2][2] = {{from[0][0][c], from[0][1][c]}, {from[1][0][c], from[1][1][c]}};
    const Tile transformed = transform_gradients(g);
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) v[(4 * i + j) * step + c] = transformed.at[i][j];
    }
  }
}

// Writes the 2 x 2 results of a tile, element e of channel c at m[e * step + c], to (to[i][j])[c] each.
ANDFAST_CLONES void leave_results(const float* m, int64_t step, float* const to[2][2], int64_t channels) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    Tile products;
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) products.at[i][j] = m[(4 * i + j) * step + c];
    }
    float results[2][2];
    transform_results(products, results);
    to[0][0][c] = results[0][0], to[0][1][c] = results[0][1];
    to[1][0][c] = results[1][0], to[1][1][c] = results[1][1];
  }
}

// The weights (outputs, inputs, 9) of one network from the channel `from` of what the convolution reads to all channels
// of what it writes, transformed: element e of channel c to u[e * step + c]. Backward it reads outputs, with the taps
// turned round. `scratch` holds 25 numbers a channel.
ANDFAST_CLONES void enter_weights(const float* weights, int64_t outputs, int64_t inputs, bool backward, int64_t from,
                                  float* u, int64_t step, float* scratch) {
  const int64_t count = backward ? inputs : outputs;
  float *taps = scratch, *elements = scratch + 9 * count;  // by tap and by element, so that channels are neighbours
  for (int64_t c = 0; c < count; ++c) {
    const float* weight = weights + (backward ? from * inputs + c : c * inputs + from) * 9;
    for (int t = 0; t < 9; ++t) taps[t * count + c] = weight[backward ? 8 - t : t];
  }
#pragma omp simd
  for (int64_t c = 0; c < count; ++c) {
    float weight[9];
    for (int t = 0; t < 9; ++t) weight[t] = taps[t * count + c];
    const Tile transformed = transform_weight(weight);
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) elements[(4 * i + j) * count + c] = transformed.at[i][j];
    }
  }
  for (int64_t e = 0; e < kElements; ++e) std::copy(elements + e * count, elements + (e + 1) * count, u + e * step);
}

// to += from.
ANDFAST_CLONES void add_up(const float* from, float* to, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) to[i] += from[i];
}

// The weights' gradients, (channels, 9), from element e of channel c at m[e * step + c].
ANDFAST_CLONES void leave_weight_gradients(const float* m, int64_t step, float* grad, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) {
    Tile products;
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) products.at[i][j] = m[(4 * i + j) * step + c];
    }
    transform_weight_gradient(products, grad + 9 * c);
  }
}

}  // namespace

void conv(const float* x, const float* weights, float* z, ConvShape shape, int64_t padding, bool backward,
          ParallelFor parallel_for) {
  const int64_t from = backward ? shape.outputs : shape.inputs, to = backward ? shape.inputs : shape.outputs;
  const int64_t padded = round_up(to, kLane), group = shape.images / shape.networks;
  const int64_t height = shape.height + 2 * padding - 2, width = shape.width + 2 * padding - 2;
  const int64_t element = from * padded;  // of the transformed weights
  const Product product = fastest_product();

  std::vector<float> u(shape.networks * kElements * element);
  parallel_for(shape.networks * from, 16, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(25 * to);
    for (int64_t i = begin; i < end; ++i) {
      enter_weights(weights + i / from * shape.outputs * shape.inputs * 9, shape.outputs, shape.inputs, backward,
                    i % from, u.data() + i / from * kElements * element + i % from * padded, element, scratch.data());
    }
  });

  const int64_t down = tiles_along(height);
  parallel_for(shape.images * down, 1, [&](int64_t begin, int64_t end) {
    const int64_t v_step = element_step(kTiles, from), m_step = element_step(kTiles, padded);
    std::vector<float> v(kElements * v_step), m(kElements * m_step), zeros(from), unwanted(to);
    float* places[kTiles][2][2];  // of the results of the tiles in v
    int64_t filled = 0;
    const auto multiply = [&](const float* transformed) {
      for (int64_t e = 0; e < kElements; ++e) {
        product(v.data() + e * v_step, from, 1, transformed + e * element, padded, m.data() + e * m_step, padded,
                round_up(filled, kRows), padded, from, false);
      }
      for (int64_t t = 0; t < filled; ++t) leave_results(m.data() + t * padded, m_step, places[t], to);
      filled = 0;
    };
    for (int64_t row = begin; row < end; ++row) {
      const int64_t image = row / down, h = 2 * (row % down);
      const Plane pixels = {x + image * shape.height * shape.width * from, shape.height, shape.width, from, zeros.data()};
      const float* transformed = u.data() + image / group * kElements * element;
      float* result = z + image * height * width * to;
      for (int64_t w = 0; w < width; w += 2) {
        enter_pixels(pixels, h - padding, w - padding, v.data() + filled * from, v_step);
        for (int i = 0; i < 2; ++i) {
          for (int j = 0; j < 2; ++j) {
            places[filled][i][j] = h + i < height && w + j < width ? result + ((h + i) * width + w + j) * to
                                                                   : unwanted.data();
          }
        }
        if (++filled == kTiles) multiply(transformed);
      }
      if (filled && (row + 1 == end || row % down == down - 1)) multiply(transformed);  // the next has other weights
    }
  });
}

void conv_weight_grad(const float* x, const float* dz, float* grad, ConvShape shape, ParallelFor parallel_for) {
  const int64_t inputs = round_up(shape.inputs, kLane), outputs = round_up(shape.outputs, kRows);
  const int64_t height = shape.height - 2, width = shape.width - 2;
  const int64_t down = tiles_along(height), across = tiles_along(width), group = shape.images / shape.networks;
  const int64_t element = outputs * inputs;
  const Product product = fastest_product();

  // A network's rows of tiles in parts, each with sums of its own, to be added up in order. How many there are depends
  // on the shape alone, and so does the rounding: enough for many cores, each worth the adding up.
  constexpr int64_t kParts = 16, kTilesOfAPart = 512;
  const int64_t rows = group * down;
  const int64_t worth = std::min(rows * across / kTilesOfAPart, kParts / shape.networks);
  const int64_t parts = std::clamp<int64_t>(worth, 1, std::max<int64_t>(1, rows));
  // Not initialised: a part's first products are not added to what is there.
  const std::unique_ptr<float[]> sums(new float[shape.networks * parts * kElements * element]);
  parallel_for(shape.networks * parts, 1, [&](int64_t begin, int64_t end) {
    const int64_t v_step = element_step(kGradTiles, inputs), g_step = element_step(kGradTiles, outputs);
    std::vector<float> v(kElements * v_step), g(kElements * g_step);
    std::vector<float> zeros(std::max(shape.inputs, shape.outputs));
    for (int64_t part = begin; part < end; ++part) {
      const int64_t network = part / parts, number = part % parts;
      float* sum = sums.get() + part * kElements * element;
      int64_t filled = 0;
      bool begun = false;
      const auto add = [&] {
        for (int64_t e = 0; e < kElements; ++e) {
          product(g.data() + e * g_step, 1, outputs, v.data() + e * v_step, inputs,
                  sum + e * element, inputs, outputs, inputs, filled, begun);
        }
        filled = 0;
        begun = true;
      };
      for (int64_t row = rows * number / parts; row < rows * (number + 1) / parts; ++row) {
        const int64_t image = network * group + row / down, h = 2 * (row % down);
        const Plane pixels = {x + image * shape.height * shape.width * shape.inputs, shape.height, shape.width,
                              shape.inputs, zeros.data()};
        const Plane gradients = {dz + image * height * width * shape.outputs, height, width, shape.outputs,
                                 zeros.data()};
        for (int64_t t = 0; t < across; ++t) {
          enter_pixels(pixels, h, 2 * t, v.data() + filled * inputs, v_step);
          enter_gradients(gradients, h, 2 * t, g.data() + filled * outputs, g_step);
          if (++filled == kGradTiles) add();
        }
      }
      if (filled || !begun) add();  // no products at all make zeros
    }
  });

  parallel_for(shape.networks * kElements, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* total = sums.get() + (i / kElements * parts * kElements + i % kElements) * element;
      for (int64_t part = 1; part < parts; ++part) add_up(total + part * kElements * element, total, element);
    }
  });
  parallel_for(shape.networks * shape.outputs, 4, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t network = row / shape.outputs, o = row % shape.outputs;
      leave_weight_gradients(sums.get() + network * parts * kElements * element + o * inputs, element,
                             grad + row * shape.inputs * 9, shape.inputs);
    }
  });
}

}  // namespace andfast::cpu
