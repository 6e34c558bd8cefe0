// Matrix products of small float32 matrices, computed one register tile at a time.
#pragma once

#include <cstdint>

namespace andfast::cpu {

constexpr int64_t kLane = 16;  // columns computed together: one register with AVX-512, two with AVX
constexpr int64_t kRows = 8;   // the number of rows should be a multiple of this

// c[r][j] (+)= sum over d of a[r * a_row + d * a_depth] b[d][j], for `rows` rows, `columns` columns and `depth`
// products; rows even, columns a multiple of kLane. Lane l of b[d], kLane columns, starts at b + d * b_depth + l *
// b_lane; row r of c at c + r * c_row. If `add`, the result is added to c; otherwise c is overwritten.
using Gemm = void (*)(const float* a, int64_t a_row, int64_t a_depth, const float* b, int64_t b_depth, int64_t b_lane,
                      float* c, int64_t c_row, int64_t rows, int64_t columns, int64_t depth, bool add);

// Products of elements of transformed tiles with transformed weights, from `depth` channels to `columns`: of element e,
// rows at v + e * v_step, v_row apart, lanes (depth, kLane) at weights + e * depth * columns, and rows without gaps at
// m + e * m_step. Rows even.
void multiply_elements(int64_t elements, int64_t rows, const float* v, int64_t v_row, int64_t v_step,
                       const float* weights, int64_t depth, int64_t columns, float* m, int64_t m_step);

// The fastest version for this processor.
Gemm fastest_gemm();

constexpr int64_t round_up(int64_t size, int64_t step) { return (size + step - 1) / step * step; }

}  // namespace andfast::cpu
