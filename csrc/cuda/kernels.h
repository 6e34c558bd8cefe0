// Launchers of the CUDA kernels, independent of torch. They take plain pointers to contiguous device memory and a
// stream, return at once, and launch nothing for empty tensors. The caller checks for launch errors with
// cudaGetLastError. Activations are in channels-last order, (images, height, width, channels), of type `Type`.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace andfast::cuda {

enum class Type { kFloat, kHalf, kBFloat16 };

// The sizes of a block's output. Image b belongs to network b / (images / networks). One image, border included,
// has fewer than 2^31 elements.
struct BlockShape {
  int networks, images, height, width, channels;

  __host__ __device__ int pixels() const { return height * width; }
  __host__ __device__ int images_per_network() const { return images / networks; }
};

// An upper limit, because a thread block covers all channels of a pixel, eight per thread.
constexpr int kMostChannels = 2048;

// The noise that a block adds. Without seeds `values` is (networks, height, width), the same in all channels; with
// seeds, (networks,), it is (networks, channels), each times the Gaussian field of that network and layer.
struct Noise {
  const float* values;
  const int64_t* seeds;
  uint32_t layer;
};

// z = a + b (b may be null), y = LeakyReLU(z) + noise with a replicated border of 0 or 1 pixels; `sign_mask` has the
// signs of z.
void block_epilogue(Type type, const void* a, const void* b, const float* slope_minus_one, Noise noise, void* y,
                    uint8_t* sign_mask, BlockShape shape, int border, cudaStream_t stream);

// Its backward pass, for dy with border. `scratch` holds block_epilogue_grad_scratch floats, for partial sums.
int64_t block_epilogue_grad_scratch(BlockShape shape, bool gaussian);
void block_epilogue_grad(Type type, const void* dy, const void* y, const uint8_t* sign_mask,
                         const float* slope_minus_one, Noise noise, void* dz, float* dslope, float* dnoise,
                         float* scratch, BlockShape shape, int border, cudaStream_t stream);

// The same block, pooled before it is stored. `pooled_noise` is the pooled map, (networks, height / scale,
// width / scale), or with strengths, (networks, channels), the pooled field of every image.
void block_epilogue_pool(Type type, const void* a, const void* b, const float* slope_minus_one,
                         const float* pooled_noise, const float* strength, void* pooled, void* negative,
                         uint8_t* sign_mask, BlockShape shape, int scale, int border, cudaStream_t stream);

// `shape` is that of the result, dz.
void block_epilogue_pool_grad(Type type, const void* dpooled, const uint8_t* sign_mask, const float* slope_minus_one,
                              void* dz, BlockShape shape, int scale, cudaStream_t stream);

// `shape` is the image's, and the gradient's with respect to it; its networks do not matter but must be 1 or more.
void blur_pool(Type type, const void* image, void* pooled, BlockShape shape, int scale, cudaStream_t stream);
void blur_pool_grad(Type type, const void* dpooled, void* dimage, BlockShape shape, int scale, cudaStream_t stream);

// The Gaussian fields of `networks` seeds: (networks * images, pixels).
void gaussian_field(const int64_t* seeds, uint32_t layer, float* field, int networks, int images, int pixels,
                    cudaStream_t stream);

// See projected_step in andfast/ops/projected_step.py. `scratch` holds projected_step_scratch doubles.
int64_t projected_step_scratch(int64_t rows, int64_t columns);
void projected_step(const float* delta, const float* grad, const float* inv_scale, float* out, double* scratch,
                    int64_t rows, int64_t columns, double step_size, double epsilon, cudaStream_t stream);

// The centre taps of an identity network's convolutions but the last: convolution l is (networks, widths[l + 1],
// widths[l]). Passed to the kernel by value.
constexpr int kMostConvolutions = 64, kMostInputs = 4, kMostWidth = 256;
struct Centres {
  const float* taps[kMostConvolutions];
  int widths[kMostConvolutions + 1];
  int count;
};

// The pseudoinverse of each network's product: (networks, widths[0], widths[count]).
void identity_last(const Centres& centres, float* inverse, int networks, cudaStream_t stream);

}  // namespace andfast::cuda
