// Winograd's F(kOut x kOut, 3 x 3): kOut^2 results of a 3x3 convolution from (kOut + 2)^2 products (Lavin and Gray,
// "Fast algorithms for convolutional neural networks", 2016). A tile is these results and the pixels they are made of:
//
//     results = A^T [ (G weight G^T) * (B^T pixels B) ] A
//
// with * element by element; summed over input channels, each element is a matrix product. The gradient of the weight
// is the transposed map, G^T [ (A gradient A^T) * (B^T pixels B) ] G.
//
// Each transform is that of a line, applied to columns and then to rows. `Value` is a vector of channels, or a number.
// All functions here are inlined into versions for several instruction sets.
#pragma once

#include "kernels.h"

namespace andfast::cpu {

// The transforms of a line: input B^T d, output A^T m, gradient A g, weight G w, weight_gradient G^T m.
template <int kOut>
struct Lines;

// The points are 0, 1, -1: 16 products for 4 results instead of 36.
template <>
struct Lines<2> {
  template <typename Value>
  static ANDFAST_BODY void input(const Value d[4], Value to[4]) {
    to[0] = d[0] - d[2], to[1] = d[1] + d[2], to[2] = d[2] - d[1], to[3] = d[1] - d[3];
  }
  template <typename Value>
  static ANDFAST_BODY void output(const Value m[4], Value to[2]) {
    to[0] = m[0] + m[1] + m[2], to[1] = m[1] - m[2] - m[3];
  }
  template <typename Value>
  static ANDFAST_BODY void gradient(const Value g[2], Value to[4]) {
    to[0] = g[0], to[1] = g[0] + g[1], to[2] = g[0] - g[1], to[3] = -g[1];
  }
  template <typename Value>
  static ANDFAST_BODY void weight(const Value w[3], Value to[4]) {
    const Value even = 0.5f * (w[0] + w[2]), odd = 0.5f * w[1];
    to[0] = w[0], to[1] = even + odd, to[2] = even - odd, to[3] = w[2];
  }
  template <typename Value>
  static ANDFAST_BODY void weight_gradient(const Value m[4], Value to[3]) {
    const Value even = 0.5f * (m[1] + m[2]);
    to[0] = m[0] + even, to[1] = 0.5f * (m[1] - m[2]), to[2] = m[3] + even;
  }
};

// The points are 0, a, -a, b, -b with a = 2/3 and b = 3/2: 36 products for 16 results instead of 144. Their errors are
// a half (of results) and a third (of weight gradients) of those with the usual 1 and 2, and as a b = 1 they need no
// more operations.
template <>
struct Lines<4> {
  static constexpr float a = 2.0f / 3, b = 1.5f, a2 = 4.0f / 9, b2 = 2.25f, a3 = 8.0f / 27, b3 = 3.375f;

  template <typename Value>
  static ANDFAST_BODY void input(const Value d[6], Value to[6]) {
    to[0] = d[0] - (a2 + b2) * d[2] + d[4], to[5] = d[1] - (a2 + b2) * d[3] + d[5];
    const Value even1 = d[4] - b2 * d[2], odd1 = a * d[3] - b * d[1];
    to[1] = even1 + odd1, to[2] = even1 - odd1;
    const Value even2 = d[4] - a2 * d[2], odd2 = b * d[3] - a * d[1];
    to[3] = even2 + odd2, to[4] = even2 - odd2;
  }
  template <typename Value>
  static ANDFAST_BODY void output(const Value m[6], Value to[4]) {
    const Value even1 = m[1] + m[2], odd1 = m[1] - m[2], even2 = m[3] + m[4], odd2 = m[3] - m[4];
    to[0] = m[0] + even1 + even2, to[1] = a * odd1 + b * odd2;
    to[2] = a2 * even1 + b2 * even2, to[3] = a3 * odd1 + b3 * odd2 + m[5];
  }
  template <typename Value>
  static ANDFAST_BODY void gradient(const Value g[4], Value to[6]) {
    const Value even1 = g[0] + a2 * g[2], odd1 = a * g[1] + a3 * g[3];
    const Value even2 = g[0] + b2 * g[2], odd2 = b * g[1] + b3 * g[3];
    to[0] = g[0], to[1] = even1 + odd1, to[2] = even1 - odd1, to[3] = even2 + odd2, to[4] = even2 - odd2, to[5] = g[3];
  }
  template <typename Value>
  static ANDFAST_BODY void weight(const Value w[3], Value to[6]) {
    const Value even1 = -81.0f / 130 * w[0] - 36.0f / 130 * w[2], odd1 = -54.0f / 130 * w[1];
    const Value even2 = 8.0f / 65 * w[0] + 18.0f / 65 * w[2], odd2 = 12.0f / 65 * w[1];
    to[0] = w[0], to[1] = even1 + odd1, to[2] = even1 - odd1, to[3] = even2 + odd2, to[4] = even2 - odd2, to[5] = w[2];
  }
  template <typename Value>
  static ANDFAST_BODY void weight_gradient(const Value m[6], Value to[3]) {
    const Value even1 = m[1] + m[2], odd1 = m[1] - m[2], even2 = m[3] + m[4], odd2 = m[3] - m[4];
    to[0] = m[0] - 81.0f / 130 * even1 + 8.0f / 65 * even2;
    to[1] = 12.0f / 65 * odd2 - 54.0f / 130 * odd1;
    to[2] = m[5] - 36.0f / 130 * even1 + 18.0f / 65 * even2;
  }
};

// The points are 0, 1, -1, 2, -2, 1/2, -1/2: 64 products for 36 results instead of 324. For results only: gradients of
// weights would lose too many digits.
template <>
struct Lines<6> {
  template <typename Value>
  static ANDFAST_BODY void input(const Value d[8], Value to[8]) {
    to[0] = (d[0] - d[6]) + 5.25f * (d[4] - d[2]);
    to[7] = (d[7] - d[1]) + 5.25f * (d[3] - d[5]);
    const Value even1 = d[2] + d[6] - 4.25f * d[4], odd1 = d[1] + d[5] - 4.25f * d[3];
    to[1] = even1 + odd1, to[2] = even1 - odd1;
    const Value even2 = d[6] + 0.25f * d[2] - 1.25f * d[4], odd2 = 0.5f * d[1] - 2.5f * d[3] + 2.0f * d[5];
    to[3] = even2 + odd2, to[4] = even2 - odd2;
    const Value even3 = d[6] + 4.0f * d[2] - 5.0f * d[4], odd3 = 2.0f * d[1] - 2.5f * d[3] + 0.5f * d[5];
    to[5] = even3 + odd3, to[6] = even3 - odd3;
  }
  template <typename Value>
  static ANDFAST_BODY void output(const Value m[8], Value to[6]) {
    const Value even1 = m[1] + m[2], odd1 = m[1] - m[2];
    const Value even2 = m[3] + m[4], odd2 = m[3] - m[4];
    const Value even3 = m[5] + m[6], odd3 = m[5] - m[6];
    to[0] = m[0] + even1 + even2 + even3;
    to[1] = odd1 + 2.0f * odd2 + 0.5f * odd3;
    to[2] = even1 + 4.0f * even2 + 0.25f * even3;
    to[3] = odd1 + 8.0f * odd2 + 0.125f * odd3;
    to[4] = even1 + 16.0f * even2 + 0.0625f * even3;
    to[5] = odd1 + 32.0f * odd2 + 0.03125f * odd3 + m[7];
  }
  template <typename Value>
  static ANDFAST_BODY void weight(const Value w[3], Value to[8]) {
    const Value even1 = -2.0f / 9 * (w[0] + w[2]), odd1 = -2.0f / 9 * w[1];
    const Value even2 = 1.0f / 90 * w[0] + 4.0f / 90 * w[2], odd2 = 2.0f / 90 * w[1];
    const Value even3 = 32.0f / 45 * w[0] + 8.0f / 45 * w[2], odd3 = 16.0f / 45 * w[1];
    to[0] = w[0], to[7] = w[2];
    to[1] = even1 + odd1, to[2] = even1 - odd1;
    to[3] = even2 + odd2, to[4] = even2 - odd2;
    to[5] = even3 + odd3, to[6] = even3 - odd3;
  }
};

}  // namespace andfast::cpu
