// The last convolution of an identity network: the pseudoinverse of the product of all others, in doubles. One thread
// block per network and one warp per row of the product, so that reads of the taps are coalesced.
#include "index.h"
#include "launch.cuh"

namespace andfast::cuda {
namespace {

constexpr int kWarps = kThreads / 32;

__device__ double sum_warp(double value) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
  return value;
}

__global__ void __launch_bounds__(kThreads) identity_kernel(const __grid_constant__ Centres centres, float* inverse) {
  __shared__ double products[2][kMostWidth * kMostInputs];
  __shared__ double gram[kMostInputs * kMostInputs];
  const int network = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int inputs = centres.widths[0];

  double* product = products[0];
  int height = centres.widths[1];
  for (int i = threadIdx.x; i < height * inputs; i += kThreads) {
    product[i] = centres.taps[0][int64_t(network) * height * inputs + i];
  }
  __syncthreads();
  for (int layer = 1; layer < centres.count; ++layer) {
    double* const next = products[layer % 2];
    const int rows = centres.widths[layer + 1];
    const float* const taps = centres.taps[layer] + int64_t(network) * rows * height;
    for (int row = warp; row < rows; row += kWarps) {
      double sums[kMostInputs] = {};
      for (int k = lane; k < height; k += 32) {
        const double tap = taps[row * height + k];
#pragma unroll
        for (int j = 0; j < kMostInputs; ++j) {
          if (j < inputs) sums[j] += tap * product[k * inputs + j];
        }
      }
#pragma unroll
      for (int j = 0; j < kMostInputs; ++j) {
        if (j >= inputs) break;
        const double sum = sum_warp(sums[j]);
        if (lane == 0) next[row * inputs + j] = sum;
      }
    }
    __syncthreads();
    product = next;
    height = rows;
  }

  // (M^T M)^-1 M^T
  for (int i = warp; i < inputs * inputs; i += kWarps) {
    double sum = 0;
    for (int k = lane; k < height; k += 32) sum += product[k * inputs + i / inputs] * product[k * inputs + i % inputs];
    sum = sum_warp(sum);
    if (lane == 0) gram[i] = sum;
  }
  __syncthreads();
  if (threadIdx.x == 0) invert(gram, inputs);
  __syncthreads();
  for (int i = threadIdx.x; i < inputs * height; i += kThreads) {
    const int row = i / height, column = i % height;
    double sum = 0;
    for (int j = 0; j < inputs; ++j) sum += gram[row * inputs + j] * product[column * inputs + j];
    inverse[int64_t(network) * inputs * height + i] = float(sum);
  }
}

}  // namespace

void identity_last(const Centres& centres, float* inverse, int networks, cudaStream_t stream) {
  if (networks == 0) return;
  launch(identity_kernel, dim3(networks), dim3(kThreads), stream, centres, inverse);
}

}  // namespace andfast::cuda
