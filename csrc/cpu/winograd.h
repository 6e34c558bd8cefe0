// Winograd's F(2 x 2, 3 x 3): four results of a 3x3 convolution from 16 products instead of 36 (Lavin and Gray, "Fast
// algorithms for convolutional neural networks", 2016). A tile is 2 x 2 results and the 4 x 4 pixels they are made of:
//
//     results = A^T [ (G weight G^T) * (B^T pixels B) ] A
//
// with * element by element; summed over input channels, each of the 16 elements is a matrix product. The gradient of
// the weight is the transposed map, G^T [ (A gradient A^T) * (B^T pixels B) ] G.
//
// All functions here are inlined into clones for several instruction sets, into loops over channels.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace andfast::cpu {

constexpr int64_t kElements = 16;

// A matrix of registers: it is only accessed with constant indices.
struct Tile {
  float at[4][4];
};

// B^T d B.
ANDFAST_BODY Tile transform_input(const Tile& d) {
  Tile rows, result;
  for (int j = 0; j < 4; ++j) {
    rows.at[0][j] = d.at[0][j] - d.at[2][j];
    rows.at[1][j] = d.at[1][j] + d.at[2][j];
    rows.at[2][j] = d.at[2][j] - d.at[1][j];
    rows.at[3][j] = d.at[1][j] - d.at[3][j];
  }
  for (int i = 0; i < 4; ++i) {
    result.at[i][0] = rows.at[i][0] - rows.at[i][2];
    result.at[i][1] = rows.at[i][1] + rows.at[i][2];
    result.at[i][2] = rows.at[i][2] - rows.at[i][1];
    result.at[i][3] = rows.at[i][1] - rows.at[i][3];
  }
  return result;
}

// A^T m A.
ANDFAST_BODY void transform_output(const Tile& m, float results[2][2]) {
  float rows[2][4];
  for (int j = 0; j < 4; ++j) {
    rows[0][j] = m.at[0][j] + m.at[1][j] + m.at[2][j];
    rows[1][j] = m.at[1][j] - m.at[2][j] - m.at[3][j];
  }
  for (int i = 0; i < 2; ++i) {
    results[i][0] = rows[i][0] + rows[i][1] + rows[i][2];
    results[i][1] = rows[i][1] - rows[i][2] - rows[i][3];
  }
}

// A g A^T of the gradients of four results.
ANDFAST_BODY Tile transform_gradients(const float g[2][2]) {
  float rows[4][2];
  Tile result;
  for (int j = 0; j < 2; ++j) {
    rows[0][j] = g[0][j];
    rows[1][j] = g[0][j] + g[1][j];
    rows[2][j] = g[0][j] - g[1][j];
    rows[3][j] = -g[1][j];
  }
  for (int i = 0; i < 4; ++i) {
    result.at[i][0] = rows[i][0];
    result.at[i][1] = rows[i][0] + rows[i][1];
    result.at[i][2] = rows[i][0] - rows[i][1];
    result.at[i][3] = -rows[i][1];
  }
  return result;
}

// G w G^T of a 3x3 weight in row-major order.
ANDFAST_BODY Tile transform_weight(const float w[9]) {
  float rows[4][3];
  Tile result;
  for (int j = 0; j < 3; ++j) {
    const float even = 0.5f * (w[j] + w[6 + j]), odd = 0.5f * w[3 + j];
    rows[0][j] = w[j];
    rows[1][j] = even + odd;
    rows[2][j] = even - odd;
    rows[3][j] = w[6 + j];
  }
  for (int i = 0; i < 4; ++i) {
    const float even = 0.5f * (rows[i][0] + rows[i][2]), odd = 0.5f * rows[i][1];
    result.at[i][0] = rows[i][0];
    result.at[i][1] = even + odd;
    result.at[i][2] = even - odd;
    result.at[i][3] = rows[i][2];
  }
  return result;
}

// G^T m G: the gradient of a weight.
ANDFAST_BODY void transform_weight_gradient(const Tile& m, float w[9]) {
  float rows[3][4];
  for (int j = 0; j < 4; ++j) {
    rows[0][j] = m.at[0][j] + 0.5f * (m.at[1][j] + m.at[2][j]);
    rows[1][j] = 0.5f * (m.at[1][j] - m.at[2][j]);
    rows[2][j] = m.at[3][j] + 0.5f * (m.at[1][j] + m.at[2][j]);
  }
  for (int i = 0; i < 3; ++i) {
    w[3 * i] = rows[i][0] + 0.5f * (rows[i][1] + rows[i][2]);
    w[3 * i + 1] = 0.5f * (rows[i][1] - rows[i][2]);
    w[3 * i + 2] = rows[i][3] + 0.5f * (rows[i][1] + rows[i][2]);
  }
}

}  // namespace andfast::cpu
