#include "gemm.h"

#include <algorithm>

#include "vectors.h"

namespace andfast::cpu {
namespace {

// kTile rows and kLanes lanes of c, whose sums stay in registers.
template <typename Vector, int kTile, int kLanes>
ANDFAST_BODY void tile(const float* a, int64_t a_row, int64_t a_depth, const float* b, int64_t b_depth, int64_t b_lane,
                       float* c, int64_t c_row, int64_t depth, bool add) {
  constexpr int kWidth = sizeof(Vector) / sizeof(float), kInLane = kLane / kWidth, kVectors = kLanes * kInLane;
  Vector sums[kTile][kVectors], row[kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kTile * kVectors; ++i) sums[i / kVectors][i % kVectors] = Vector{};
  for (int64_t d = 0; d < depth; ++d, a += a_depth, b += b_depth) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) row[v] = load_vector<Vector>(b + v / kInLane * b_lane + v % kInLane * kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < kTile; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[r][v] += row[v] * a[r * a_row];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kTile; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      float* to = c + r * c_row + v * kWidth;
      store_vector(to, add ? load_vector<Vector>(to) + sums[r][v] : sums[r][v]);
    }
  }
}

template <typename Vector, int kTile, int kLanes>
ANDFAST_BODY void lanes(const float* a, int64_t a_row, int64_t a_depth, const float* b, int64_t b_depth, int64_t b_lane,
                        float* c, int64_t c_row, int64_t rows, int64_t depth, bool add) {
  static_assert(kRows % 2 == 0);
  int64_t r = 0;
  for (; r + kTile <= rows; r += kTile) {
    tile<Vector, kTile, kLanes>(a + r * a_row, a_row, a_depth, b, b_depth, b_lane, c + r * c_row, c_row, depth, add);
  }
  // Rows that do not fill a tile use smaller ones.
  for (; kTile > 4 && r + 4 <= rows; r += 4) {
    tile<Vector, 4, kLanes>(a + r * a_row, a_row, a_depth, b, b_depth, b_lane, c + r * c_row, c_row, depth, add);
  }
  for (; r < rows; r += 2) {
    tile<Vector, 2, kLanes>(a + r * a_row, a_row, a_depth, b, b_depth, b_lane, c + r * c_row, c_row, depth, add);
  }
}

// The sums of a tile fill at least eight registers, which hides the latency of the multipliers; the more of them, the
// fewer loads there are for a product. Some registers are left for a and b.
template <typename Vector, int kTile, int kLanes>
ANDFAST_BODY void gemm_body(const float* a, int64_t a_row, int64_t a_depth, const float* b, int64_t b_depth,
                            int64_t b_lane, float* c, int64_t c_row, int64_t rows, int64_t columns, int64_t depth,
                            bool add) {
  int64_t j = 0;
  for (; j + kLanes * kLane <= columns; j += kLanes * kLane) {
    lanes<Vector, kTile, kLanes>(a, a_row, a_depth, b + j / kLane * b_lane, b_depth, b_lane, c + j, c_row, rows, depth,
                                 add);
  }
  for (; kLanes > 1 && j < columns; j += kLane) {
    lanes<Vector, kTile, 1>(a, a_row, a_depth, b + j / kLane * b_lane, b_depth, b_lane, c + j, c_row, rows, depth, add);
  }
}

// These clones differ in more than their instruction set, so ANDFAST_CLONES cannot express them.
#define ANDFAST_GEMM(name, target, Vector, kTile, kLanes)                                                           \
  target void name(const float* a, int64_t a_row, int64_t a_depth, const float* b, int64_t b_depth, int64_t b_lane, \
                   float* c, int64_t c_row, int64_t rows, int64_t columns, int64_t depth, bool add) {               \
    gemm_body<Vector, kTile, kLanes>(a, a_row, a_depth, b, b_depth, b_lane, c, c_row, rows, columns, depth, add);   \
  }
ANDFAST_GEMM(gemm_baseline, , Float4, 2, 1)
#if defined(__x86_64__)
ANDFAST_GEMM(gemm_avx2, __attribute__((target("avx2,fma"))), Float8, 6, 1)
ANDFAST_GEMM(gemm_avx512, __attribute__((target("avx512f,fma"))), Float16, 8, 2)
#endif

struct Fastest {
  Gemm product;
  int64_t rows, lanes;  // that it computes together
};

Fastest fastest() {
#if defined(__x86_64__)
  if (has_avx512()) return {gemm_avx512, 8, 2};
  if (has_avx2()) return {gemm_avx2, 6, 1};
#endif
  return {gemm_baseline, 2, 1};
}

}  // namespace

Gemm fastest_gemm() { return fastest().product; }

void multiply_elements(int64_t elements, int64_t rows, const float* v, int64_t v_row, int64_t v_step,
                       const float* weights, int64_t depth, int64_t columns, float* m, int64_t m_step) {
  static const Fastest gemm = fastest();
  const int64_t together = gemm.lanes * kLane;
  const int64_t products = (rows + gemm.rows - 1) / gemm.rows * ((columns + together - 1) / together);
  // What is fetched of the next element beside each product.
  const int64_t rows_ahead = (rows + products - 1) / products;
  for (int64_t e = 0; e < elements; ++e, v += v_step, m += m_step, weights += depth * columns) {
    int64_t fetched = e + 1 < elements ? 0 : rows;
    for (int64_t column = 0; column < columns; column += together) {
      for (int64_t r = 0; r < rows; r += gemm.rows) {
        for (const int64_t end = std::min(fetched + rows_ahead, rows); fetched < end; ++fetched) {
          prefetch<false>(v + v_step + fetched * v_row, depth * sizeof(float));
        }
        gemm.product(v + r * v_row, v_row, 1, weights + column * depth, kLane, depth * kLane, m + r * columns + column,
                     columns, std::min(gemm.rows, rows - r), std::min(together, columns - column), depth, false);
      }
    }
  }
}

}  // namespace andfast::cpu
