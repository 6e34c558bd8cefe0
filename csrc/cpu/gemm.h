// Matrix products of small float32 matrices, computed one register tile at a time.
#pragma once

#include <cstdint>

namespace andfast::cpu {

constexpr int64_t kLane = 16;  // columns computed together: one register with AVX-512, two with AVX
constexpr int64_t kRows = 8;   // the number of rows should be a multiple of this

// c[r][j] (+)= sum over d of a[r * a_row + d * a_depth] b[d * b_depth + j], for `rows` rows, `columns` columns and
// `depth` products; rows even, columns a multiple of kLane. Row r of c starts at c + r * c_row. If `add`, the result is
// added to c; otherwise c is overwritten.
using Gemm = void (*)(const float* a, int64_t a_row, int64_t a_depth, const float* b, int64_t b_depth, float* c,
                      int64_t c_row, int64_t rows, int64_t columns, int64_t depth, bool add);

// The fastest version for this processor, and the number of rows it computes together.
Gemm fastest_gemm();
int64_t fastest_gemm_rows();

constexpr int64_t round_up(int64_t size, int64_t step) { return (size + step - 1) / step * step; }

}  // namespace andfast::cpu
