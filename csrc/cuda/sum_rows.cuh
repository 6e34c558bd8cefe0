// The last step of sums over a whole tensor: partial sums, in a fixed order. Nothing is added atomically, so that
// equal inputs give equal bits.
#pragma once

#include "index.h"
#include "launch.cuh"

namespace andfast::cuda {
namespace {

// out[n][c] = sum over r of parts[n][r][c]. Block: (columns, lanes), both powers of two; lanes share the rows.
// With `slopes_minus_one` the sum is divided by network n's slope, as math.h's inverse_slope does.
__global__ void __launch_bounds__(kThreads)
    sum_rows_kernel(const float* __restrict__ parts, const float* __restrict__ slopes_minus_one,
                    float* __restrict__ out, int rows, int columns) {
  __shared__ double sums[kThreads];
  const int column = blockIdx.x * blockDim.x + threadIdx.x;
  const int network = blockIdx.y;
  const int self = threadIdx.y * blockDim.x + threadIdx.x;
  double sum = 0;
  if (column < columns) {
    parts += int64_t(network) * rows * columns + column;
#pragma unroll 8
    for (int row = threadIdx.y; row < rows; row += blockDim.y) sum += parts[int64_t(row) * columns];
  }
  sums[self] = sum;
  for (int lanes = blockDim.y / 2; lanes > 0; lanes /= 2) {
    __syncthreads();
    if (threadIdx.y < lanes) sums[self] += sums[self + lanes * blockDim.x];
  }
  if (threadIdx.y == 0 && column < columns) {
    const double factor = slopes_minus_one ? inverse_slope(slopes_minus_one[network]) : 1.0;
    out[int64_t(network) * columns + column] = float(sums[self] * factor);
  }
}

void sum_rows(const float* parts, const float* slopes_minus_one, float* out, int networks, int rows, int columns,
              cudaStream_t stream) {
  int lanes = 1;
  while (lanes < rows && lanes < 32) lanes *= 2;
  const int width = kThreads / lanes;
  launch(sum_rows_kernel, dim3(ceil_div(columns, width), networks), dim3(width, lanes), stream, parts, slopes_minus_one,
         out, rows, columns);
}

}  // namespace
}  // namespace andfast::cuda
