// Stores the Gaussian field of the noise injection, for pooling it and for tests.
#include "index.h"
#include "launch.cuh"

namespace andfast::cuda {
namespace {

// One thread draws four pixels of an image.
__global__ void __launch_bounds__(kThreads)
    gaussian_field_kernel(const int64_t* __restrict__ seeds, uint32_t layer, float* __restrict__ field, int images,
                          int pixels, int tiles) {
  const int image = blockIdx.x / tiles;
  const int quad = blockIdx.x % tiles * blockDim.x + threadIdx.x;
  if (4 * int64_t(quad) >= pixels) return;
  float values[4];
  gaussian_quad(uint64_t(seeds[image / images]), layer, image % images, quad, values);
  field += int64_t(image) * pixels + 4 * quad;
  if (pixels % 4 == 0) {
    *reinterpret_cast<float4*>(field) = make_float4(values[0], values[1], values[2], values[3]);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (4 * quad + i < pixels) field[i] = values[i];
  }
}

}  // namespace

void gaussian_field(const int64_t* seeds, uint32_t layer, float* field, int networks, int images, int pixels,
                    cudaStream_t stream) {
  if (int64_t(networks) * images * pixels == 0) return;
  const int tiles = ceil_div(pixels, 4 * kThreads);
  launch(gaussian_field_kernel, dim3(networks * images * tiles), dim3(kThreads), stream, seeds, layer, field, images,
         pixels, tiles);
}

}  // namespace andfast::cuda
