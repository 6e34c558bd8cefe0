// The adversary's step on every row, in two launches: partial sums, then the step that they decide.
#include "index.h"
#include "launch.cuh"

namespace andfast::cuda {
namespace {

// The part of a row that one thread block handles. Sums are kept per chunk and combined in a fixed order.
constexpr int kChunk = 4096;

__device__ StepSums operator+(const StepSums& a, const StepSums& b) {
  return {a.grad + b.grad, a.delta + b.delta, a.dot + b.dot};
}

// The block's sum, for all of its kThreads threads.
__device__ StepSums sum_block(const StepSums& sums, StepSums* shared) {
  shared[threadIdx.x] = sums;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) shared[threadIdx.x] = shared[threadIdx.x] + shared[threadIdx.x + half];
  }
  __syncthreads();
  return shared[0];
}

// Shared memory for sums: a __shared__ variable cannot have StepSums' initial values.
struct alignas(StepSums) RawSums {
  char bytes[sizeof(StepSums)];
};

__global__ void __launch_bounds__(kThreads)
    sum_kernel(const float* __restrict__ delta, const float* __restrict__ grad, const float* __restrict__ inv_scale,
               StepSums* __restrict__ parts, int64_t columns, int chunks) {
  __shared__ RawSums shared[kThreads];
  const int64_t first = int64_t(blockIdx.x % chunks) * kChunk, offset = blockIdx.x / chunks * columns + first;
  const int count = int(min(int64_t(kChunk), columns - first));
  StepSums sums;
#pragma unroll 4
  for (int i = threadIdx.x; i < count; i += kThreads) {
    add_element(delta[offset + i], grad[offset + i], inv_scale[first + i], sums.grad, sums.delta, sums.dot);
  }
  sums = sum_block(sums, reinterpret_cast<StepSums*>(shared));
  if (threadIdx.x == 0) parts[blockIdx.x] = sums;
}

__global__ void __launch_bounds__(kThreads)
    step_kernel(const float* __restrict__ delta, const float* __restrict__ grad, const float* __restrict__ inv_scale,
                const StepSums* __restrict__ parts, float* __restrict__ out, int64_t columns, int chunks,
                double step_size, double epsilon) {
  __shared__ RawSums shared[kThreads];
  const int64_t row = blockIdx.x / chunks;
  StepSums sums;
  for (int i = threadIdx.x; i < chunks; i += kThreads) sums = sums + parts[row * chunks + i];
  const StepRule rule = step_rule(sum_block(sums, reinterpret_cast<StepSums*>(shared)), step_size, epsilon);

  const int64_t first = int64_t(blockIdx.x % chunks) * kChunk, offset = row * columns + first;
  const int count = int(min(int64_t(kChunk), columns - first));
#pragma unroll 4
  for (int i = threadIdx.x; i < count; i += kThreads) {
    out[offset + i] = step_element(delta[offset + i], grad[offset + i], inv_scale[first + i], rule.rate, rule.shrink);
  }
}

}  // namespace

int64_t projected_step_scratch(int64_t rows, int64_t columns) {
  return rows * ceil_div(columns, kChunk) * int64_t(sizeof(StepSums) / sizeof(double));
}

void projected_step(const float* delta, const float* grad, const float* inv_scale, float* out, double* scratch,
                    int64_t rows, int64_t columns, double step_size, double epsilon, cudaStream_t stream) {
  if (rows * columns == 0) return;
  const int chunks = ceil_div(columns, kChunk);
  const dim3 grid(rows * chunks);
  StepSums* const parts = reinterpret_cast<StepSums*>(scratch);
  launch(sum_kernel, grid, dim3(kThreads), stream, delta, grad, inv_scale, parts, columns, chunks);
  launch(step_kernel, grid, dim3(kThreads), stream, delta, grad, inv_scale, parts, out, columns, chunks, step_size,
         epsilon);
}

}  // namespace andfast::cuda
