// The CPU kernels, independent of torch: they take plain pointers to contiguous memory, and a parallel_for.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

// Compiles a function for several instruction sets and picks one when the library loads, so that one wheel is fast
// on old and new x86 processors. It needs the ifunc mechanism of glibc; elsewhere the baseline is used. Compiled with
// -DANDFAST_NO_AVX512 (in CFLAGS) the kernels use at most AVX2, to test and time what older processors run; give such a
// build a kernel table of its own (ANDFAST_CACHE).
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__has_attribute)
#if __has_attribute(target_clones)
#ifdef ANDFAST_NO_AVX512
#define ANDFAST_CLONES __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define ANDFAST_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#endif
#endif
#endif
#ifndef ANDFAST_CLONES
#define ANDFAST_CLONES
#endif

namespace andfast::cpu {

// A function body that is compiled anew, for its instruction set, in every clone that calls it.
#if defined(__GNUC__)
#define ANDFAST_BODY inline __attribute__((always_inline))
#else
#define ANDFAST_BODY inline
#endif

// Calls task(begin, end) for parts that make up [0, count), each of at least `grain` if possible, possibly in parallel;
// returns when all are done. Tasks throw only when memory runs out. Where a function takes `threads` beside it, that is
// the number of threads to keep busy; results do not depend on it.
using Task = std::function<void(int64_t begin, int64_t end)>;
using ParallelFor = void (*)(int64_t count, int64_t grain, const Task& task);

// See projected_step in andfast/ops/projected_step.py. delta, grad, out: (rows, columns); inv_scale: (columns);
// out overlaps no input. Results do not depend on how parallel_for splits the work.
void projected_step(const float* delta, const float* grad, const float* inv_scale, float* out, int64_t rows,
                    int64_t columns, double step_size, double epsilon, ParallelFor parallel_for);

// The upper half of a float32.
struct bfloat16 {
  uint16_t bits;
};

// The sizes of a block's output, in channels-last order: image b belongs to network b / (images / networks).
struct BlockShape {
  int64_t networks, images, height, width, channels;
};

// The noise that a block adds. Without seeds `values` is (networks, height, width), the same in all channels; with
// seeds, (networks,), it is (networks, channels), each times the Gaussian field of that network and layer.
struct Noise {
  const float* values;
  const int64_t* seeds;
  int64_t layer;
};

// The operators of andfast/ops/backends/library.py, which says what they compute. T: float or bfloat16. b may be null.
// `border` is 0 or 1. No output overlaps an input, and results do not depend on how parallel_for splits the work.
template <typename T>
void block_epilogue(const T* a, const T* b, const float* slope_minus_one, Noise noise, T* y, uint8_t* sign_mask,
                    BlockShape shape, int64_t border, ParallelFor parallel_for);
template <typename T>
void block_epilogue_grad(const T* dy, const T* y, const uint8_t* sign_mask, const float* slope_minus_one, Noise noise,
                         T* dz, float* dslope, float* dnoise, BlockShape shape, int64_t border,
                         ParallelFor parallel_for);
template <typename T>
void block_epilogue_pool(const T* a, const T* b, const float* slope_minus_one, Noise noise, T* pooled, T* negative,
                         uint8_t* sign_mask, BlockShape shape, int64_t scale, int64_t border, ParallelFor parallel_for);
template <typename T>
void block_epilogue_pool_grad(const T* dpooled, const uint8_t* sign_mask, const float* slope_minus_one, T* dz,
                              BlockShape shape, int64_t scale, ParallelFor parallel_for);

// Anti-aliased pooling (images, height, width, channels) -> (images, height / scale, width / scale, channels), and
// its gradient. T: float or bfloat16.
template <typename T>
void blur_pool(const T* image, T* pooled, BlockShape shape, int64_t scale, ParallelFor parallel_for);
template <typename T>
void blur_pool_grad(const T* dpooled, T* dimage, BlockShape shape, int64_t scale, ParallelFor parallel_for);

// 3x3 convolutions from (images, height, width, inputs) with weights (networks, outputs, inputs, 9): image b belongs to
// network b / (images / networks).
struct ConvShape {
  int64_t networks, images, height, width, inputs, outputs;
};

// Strides of convolution weights: tap t, in row-major order, from input i to output o of network n at n * network_step
// + o * output_step + i * input_step + t * tap_step.
struct WeightSteps {
  int64_t network_step, output_step, input_step, tap_step;
};
struct Weights {
  const float* taps;
  WeightSteps steps;
};

// Epilogue of a convolution: LeakyReLU(z + bias), with one bias and slope per channel, and the signs of its input;
// `sign_mask` may be null. There is no epilogue if `slope` is null.
struct ConvEpilogue {
  const float* bias = nullptr;
  const float* slope = nullptr;
  uint8_t* sign_mask = nullptr;
};

// The operators of andfast/ops/backends/winograd.py. z is (images, height + 2 padding - 2, width + 2 padding - 2,
// outputs); if `backward`, x has `outputs` channels and z has `inputs`.
void conv(const float* x, const Weights& weights, float* z, ConvShape shape, int64_t padding, bool backward,
          ConvEpilogue epilogue, int64_t threads, ParallelFor parallel_for);
// A block with a noise map: y = z + slope_minus_one min(z, 0) + noise of the convolution z without padding, and its
// sign_mask. `slope_minus_one` is (networks), `noise` (networks, height - 2, width - 2); y has a replicated border of
// `border` (0 or 1) pixels.
void conv_block(const float* x, const Weights& weights, const float* slope_minus_one, const float* noise, float* y,
                uint8_t* sign_mask, ConvShape shape, int64_t border, int64_t threads, ParallelFor parallel_for);
// dz is (images, height + 2 padding - 2, width + 2 padding - 2, outputs), grad has the strides `steps`.
void conv_weight_grad(const float* x, const float* dz, float* grad, ConvShape shape, int64_t padding, WeightSteps steps,
                      ParallelFor parallel_for);

// The operators of andfast/ops/backends/library.py. T: float or bfloat16; slope is (channels); sign_mask may be null.
template <typename T>
void leaky_relu(const T* z, const float* slope, T* y, uint8_t* sign_mask, int64_t pixels, int64_t channels,
                ParallelFor parallel_for);
template <typename T>
void leaky_relu_backward(const T* dy, const float* slope, const uint8_t* sign_mask, T* dz, int64_t pixels,
                         int64_t channels, ParallelFor parallel_for);
template <typename T>
struct WeightsOf {
  const T* taps;
  WeightSteps steps;
  int64_t outputs;
};
// `flipped` is (count, 9, all outputs).
template <typename T>
void flip_transpose(const std::vector<WeightsOf<T>>& weights, int64_t first, int64_t count, float gain, T* flipped,
                    ParallelFor parallel_for);

// The operators of andfast/ops/dense_block.py. The first convolutions each add `growth` channels to the `features`
// ones.
constexpr int64_t kDenseConvs = 5, kIntermediates = kDenseConvs - 1;
struct DenseShape {
  int64_t images, height, width, features, growth;
};
struct DenseFactors {
  float slope, gain;  // slope of the LeakyReLUs; factor of the residual
};
void dense_block(const float* x, const std::vector<Weights>& weights, const std::vector<const float*>& biases,
                 DenseShape shape, DenseFactors factors, float* y, float* intermediates, uint8_t* sign_mask,
                 int64_t threads, ParallelFor parallel_for);
void dense_block_input_grad(const float* dy, const std::vector<Weights>& weights, const uint8_t* sign_mask,
                            DenseShape shape, DenseFactors factors, float* dx, float* dintermediates, int64_t threads,
                            ParallelFor parallel_for);
void dense_block_weight_grad(const float* x, const float* intermediates, const float* dy, const float* dintermediates,
                             DenseShape shape, DenseFactors factors, const std::vector<float*>& grads,
                             const std::vector<WeightSteps>& steps, ParallelFor parallel_for);

// The same in bfloat16, by the processor's matrix tiles (AMX), which `amx_available` asks the system for; with
// `emulate` by plain products with the same results, for tests on any processor.
bool amx_available();
void amx_dense_block(const bfloat16* x, const std::vector<WeightsOf<bfloat16>>& weights,
                     const std::vector<const bfloat16*>& biases, DenseShape shape, DenseFactors factors, bfloat16* y,
                     bfloat16* intermediates, uint8_t* sign_mask, bool emulate, ParallelFor parallel_for);
void amx_dense_block_input_grad(const bfloat16* dy, const std::vector<WeightsOf<bfloat16>>& weights,
                                const uint8_t* sign_mask, DenseShape shape, DenseFactors factors, bfloat16* dx,
                                bfloat16* dintermediates, bool emulate, ParallelFor parallel_for);

// The operators of andfast/ops/conv_chain.py, which save nothing for a backward pass.
struct ChainConv {
  Weights weights;
  const float *bias, *slope;  // one number per channel; slope may be null
  int64_t inputs, outputs, repeat;
};
// y is (images, height, width, outputs of the last one), height and width times all of `repeat`.
void large_chain(const float* x, const std::vector<ChainConv>& convs, int64_t images, int64_t height, int64_t width,
                 float* y, int64_t threads, ParallelFor parallel_for);
void large_dense_block(const float* x, const std::vector<Weights>& weights, const std::vector<const float*>& biases,
                       DenseShape shape, DenseFactors factors, float* y, int64_t threads, ParallelFor parallel_for);

// Rows of 9 * kernels numbers, `from_row` apart: each nine, as a row vector, times basis (9, 9), to rows without gaps.
void rotate_taps(const float* from, int64_t from_row, const float* basis, float* to, int64_t rows, int64_t kernels,
                 ParallelFor parallel_for);

// The pseudoinverse (networks, widths[0], widths.back()) of the product of matrices, taps[i] being (networks,
// widths[i + 1], widths[i]); see andfast/ops/identity_init.py.
void identity_last(const std::vector<const float*>& taps, const std::vector<int64_t>& widths, float* inverse,
                   int64_t networks, ParallelFor parallel_for);

// The Gaussian fields of `networks` seeds: (networks * images, pixels).
void gaussian_field(const int64_t* seeds, float* field, int64_t networks, int64_t images, int64_t pixels, int64_t layer,
                    ParallelFor parallel_for);

}  // namespace andfast::cpu
