#include "gemm.h"

#include "vectors.h"

namespace andfast::cpu {
namespace {

// kTile rows and a lane of columns of c. The kTile * kVectors sums stay in registers.
template <typename Vector, int kTile>
ANDFAST_BODY void tile(const float* a, int64_t a_row, int64_t a_depth, const float* b, int64_t b_depth, float* c,
                       int64_t c_row, int64_t depth, bool add) {
  typedef Vector Unaligned __attribute__((aligned(4), may_alias));
  constexpr int kVectors = kLane * sizeof(float) / sizeof(Vector);
  Vector sums[kTile][kVectors], lane[kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kTile * kVectors; ++i) sums[i / kVectors][i % kVectors] = Vector{};
  for (int64_t d = 0; d < depth; ++d, a += a_depth, b += b_depth) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) lane[v] = reinterpret_cast<const Unaligned*>(b)[v];
#pragma GCC unroll 8
    for (int r = 0; r < kTile; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[r][v] += lane[v] * a[r * a_row];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kTile; ++r) {
    auto* to = reinterpret_cast<Unaligned*>(c + r * c_row);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) to[v] = add ? to[v] + sums[r][v] : sums[r][v];
  }
}

// kTile is chosen so that the sums fill at least eight registers, which hides the latency of the multipliers, and leave
// some registers for a and b. Rows that do not fill a tile use smaller tiles.
template <typename Vector, int kTile>
ANDFAST_BODY void gemm_body(const float* a, int64_t a_row, int64_t a_depth, const float* b, int64_t b_depth, float* c,
                            int64_t c_row, int64_t rows, int64_t columns, int64_t depth, bool add) {
  static_assert(kRows % 2 == 0);
  for (int64_t j = 0; j < columns; j += kLane) {
    int64_t r = 0;
    for (; r + kTile <= rows; r += kTile) {
      tile<Vector, kTile>(a + r * a_row, a_row, a_depth, b + j, b_depth, c + r * c_row + j, c_row, depth, add);
    }
    for (; kTile > 4 && r + 4 <= rows; r += 4) {
      tile<Vector, 4>(a + r * a_row, a_row, a_depth, b + j, b_depth, c + r * c_row + j, c_row, depth, add);
    }
    for (; r < rows; r += 2) {
      tile<Vector, 2>(a + r * a_row, a_row, a_depth, b + j, b_depth, c + r * c_row + j, c_row, depth, add);
    }
  }
}

// These clones differ in more than their instruction set, so ANDFAST_CLONES cannot express them.
#define ANDFAST_GEMM(name, target, Vector, kTile)                                                             \
  target void name(const float* a, int64_t a_row, int64_t a_depth, const float* b, int64_t b_depth, float* c, \
                   int64_t c_row, int64_t rows, int64_t columns, int64_t depth, bool add) {                   \
    gemm_body<Vector, kTile>(a, a_row, a_depth, b, b_depth, c, c_row, rows, columns, depth, add);             \
  }
ANDFAST_GEMM(gemm_baseline, , Float4, 2)
#if defined(__x86_64__)
ANDFAST_GEMM(gemm_avx2, __attribute__((target("avx2,fma"))), Float8, 6)
ANDFAST_GEMM(gemm_avx512, __attribute__((target("avx512f,fma"))), Float16, 8)
#endif

struct Fastest {
  Gemm product;
  int64_t rows;
};

Fastest fastest() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return {gemm_avx512, 8};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {gemm_avx2, 6};
#endif
  return {gemm_baseline, 2};
}

}  // namespace

Gemm fastest_gemm() { return fastest().product; }

int64_t fastest_gemm_rows() { return fastest().rows; }

}  // namespace andfast::cpu
