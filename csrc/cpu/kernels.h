// The CPU kernels. None knows torch: they take plain pointers to contiguous memory, and a way to run in parallel.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

// Compiles a function for several instruction sets and picks one when the library loads, so that one wheel is fast
// on old and new x86 processors. It needs the ifunc mechanism of glibc; elsewhere the baseline is used.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__has_attribute)
#if __has_attribute(target_clones)
#define ANDFAST_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
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

// Calls task(begin, end) for parts that make up [0, count), each of `grain` or more where possible, at the same
// time or not, and returns when all are done. Tasks throw nothing but what a lack of memory makes them.
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

// What a noise injection adds. Without seeds `values` is (networks, height, width), the same in all channels; with
// seeds, (networks,), it is (networks, channels), each times the Gaussian field of that network and layer.
struct Noise {
  const float* values;
  const int64_t* seeds;
  int64_t layer;
};

// The operators of andfast/ops/block_tail.py, which says what they compute. T: float or bfloat16. b may be null.
// `border` is 0 or 1. No output overlaps an input, and results do not depend on how parallel_for splits the work.
template <typename T>
void block_tail(const T* a, const T* b, const float* bend, Noise noise, T* y, uint8_t* signs, BlockShape shape,
                int64_t border, ParallelFor parallel_for);
template <typename T>
void block_tail_grad(const T* dy, const T* y, const uint8_t* signs, const float* bend, Noise noise, T* dz,
                     float* dbend, float* dnoise, BlockShape shape, int64_t border, ParallelFor parallel_for);
template <typename T>
void block_tail_pool(const T* a, const T* b, const float* bend, Noise noise, T* pooled, T* negative, uint8_t* signs,
                     BlockShape shape, int64_t scale, int64_t border, ParallelFor parallel_for);
template <typename T>
void block_tail_pool_grad(const T* dpooled, const uint8_t* signs, const float* bend, T* dz, BlockShape shape,
                          int64_t scale, ParallelFor parallel_for);

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

// Where the weights of convolutions lie: tap t, in row-major order, from input i to output o of network n at
// n * network_step + o * output_step + i * input_step + t * tap_step.
struct WeightSteps {
  int64_t network_step, output_step, input_step, tap_step;
};
struct Weights {
  const float* taps;
  WeightSteps steps;
};

// What comes after a convolution: LeakyReLU of the result plus `bias`, both a number a channel, and the signs before it,
// which may be null. Nothing at all where `slope` is null.
struct ConvTail {
  const float* bias = nullptr;
  const float* slope = nullptr;
  uint8_t* signs = nullptr;
};

// The operators of andfast/ops/conv.py. z is (images, height + 2 padding - 2, width + 2 padding - 2, outputs); if
// `backward`, x has `outputs` channels and z has `inputs`.
void conv(const float* x, const Weights& weights, float* z, ConvShape shape, int64_t padding, bool backward,
          ConvTail tail, ParallelFor parallel_for);
// A block with a noise map: y = z + bend min(z, 0) + noise of the convolution z without padding, and its signs. `bend` is
// (networks), `noise` (networks, height - 2, width - 2); y has a replicated border of `border` (0 or 1) pixels.
void conv_block(const float* x, const Weights& weights, const float* bend, const float* noise, float* y,
                uint8_t* signs, ConvShape shape, int64_t border, ParallelFor parallel_for);
// dz is (images, height + 2 padding - 2, width + 2 padding - 2, outputs), grad lies as `steps` says.
void conv_weight_grad(const float* x, const float* dz, float* grad, ConvShape shape, int64_t padding, WeightSteps steps,
                      ParallelFor parallel_for);

// The operators of andfast/ops/backends/generator_library.py. T: float or bfloat16; slope is (channels); signs may be null.
template <typename T>
void leaky(const T* z, const float* slope, T* y, uint8_t* signs, int64_t pixels, int64_t channels,
           ParallelFor parallel_for);
template <typename T>
void leaky_grad(const T* dy, const float* slope, const uint8_t* signs, T* dz, int64_t pixels, int64_t channels,
                ParallelFor parallel_for);
template <typename T>
struct WeightsOf {
  const T* taps;
  WeightSteps steps;
  int64_t outputs;
};
// `turned` is (count, 9, all outputs).
template <typename T>
void turn_weights(const std::vector<WeightsOf<T>>& weights, int64_t first, int64_t count, float gain, T* turned,
                  ParallelFor parallel_for);

// The operators of andfast/ops/dense_block.py. The first convolutions each add `growth` channels to the `features` ones.
constexpr int64_t kDenseConvs = 5;
struct DenseShape {
  int64_t images, height, width, features, growth;
};
struct DenseFactors {
  float slope, gain;  // of the LeakyReLUs; of what is added to x
};
void dense_block(const float* x, const std::vector<Weights>& weights, const std::vector<const float*>& biases,
                 DenseShape shape, DenseFactors factors, float* y, float* grown, uint8_t* signs,
                 ParallelFor parallel_for);
void dense_block_input_grad(const float* dy, const std::vector<Weights>& weights, const uint8_t* signs,
                            DenseShape shape, DenseFactors factors, float* dx, float* dgrown,
                            ParallelFor parallel_for);
void dense_block_weight_grad(const float* x, const float* grown, const float* dy, const float* dgrown,
                             DenseShape shape, DenseFactors factors, const std::vector<float*>& grads,
                             const std::vector<WeightSteps>& steps, ParallelFor parallel_for);

// The operators of andfast/ops/large_tiles.py, which keep nothing. So many `threads` should have something to do at a
// time; results do not depend on it.
struct ChainConv {
  Weights weights;
  const float *bias, *slope;  // numbers a channel; slope may be null
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
void gaussian_field(const int64_t* seeds, float* field, int64_t networks, int64_t images, int64_t pixels,
                    int64_t layer, ParallelFor parallel_for);

}  // namespace andfast::cpu
