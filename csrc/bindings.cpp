// The bindings (this file, bindings.h and bindings_cuda.cpp) alone know torch, through its stable ABI: schemas, checks
// and registration. Built against one torch release, they load in later ones. The checks guard the kernels' memory;
// andfast/ops gives the friendly errors.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "bindings.h"
#include "cpu/kernels.h"

namespace {

using namespace andfast;  // check, empty and the rest of bindings.h
using andfast::cpu::bfloat16;
using andfast::cpu::BlockShape;
using andfast::cpu::ConvShape;
using andfast::cpu::DenseShape;
using andfast::cpu::Weights;
using andfast::cpu::WeightSteps;

void parallel_for(int64_t count, int64_t grain, const andfast::cpu::Task& task) {
  torch::stable::parallel_for(0, count, grain, task);
}

// How the weights of N networks lie as (N, out, in, 9).
WeightSteps bank_steps(const ConvShape& shape) { return {shape.outputs * shape.inputs * 9, shape.inputs * 9, 9, 1}; }

// How a convolution's weight (out, in, 3, 3) lies, contiguous or channels_last; -1 stands for any size.
WeightSteps weight_steps(const char* name, const Tensor& weight, const Tensor& like, ScalarType type, int64_t outputs,
                         int64_t inputs) {
  STD_TORCH_CHECK(weight.device() == like.device(), name, " must be on the device of the other tensors");
  STD_TORCH_CHECK(weight.scalar_type() == type, name, " must be of type ", torch::headeronly::toString(type));
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3 &&
                      (outputs == -1 || weight.size(0) == outputs) && (inputs == -1 || weight.size(1) == inputs),
                  name, " must have the shape (", outputs == -1 ? "any" : std::to_string(outputs), ", ",
                  inputs == -1 ? "any" : std::to_string(inputs), ", 3, 3)");
  STD_TORCH_CHECK(weight.stride(2) == 3 * weight.stride(3), name, " must have its nine taps evenly spaced");
  return {0, weight.stride(0), weight.stride(1), weight.stride(3)};
}

void check_padding(const ConvShape& shape, int64_t padding) {
  STD_TORCH_CHECK(padding >= 0, "padding must not be negative, got ", padding);
  STD_TORCH_CHECK(shape.height + 2 * padding > 2 && shape.width + 2 * padding > 2,
                  "x must hold 3 x 3 pixels or more, the padding included");
}

Sizes result_sizes(const ConvShape& shape, int64_t padding, int64_t channels) {
  return {shape.images, shape.height + 2 * padding - 2, shape.width + 2 * padding - 2, channels};
}

// Calls f with a null pointer of the tensor's element type.
template <typename F>
void by_type(const char* name, const Tensor& tensor, F f) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return f(static_cast<float*>(nullptr));
    case ScalarType::BFloat16:
      return f(static_cast<bfloat16*>(nullptr));
    default:
      STD_TORCH_CHECK(false, name, " must be float32 or bfloat16");
  }
}

template <typename T>
const T* read(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <typename T>
T* write(Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

Tensor projected_step(const Tensor& delta, const Tensor& grad, const Tensor& inv_scale, double step_size,
                      double epsilon) {
  check("delta", delta, delta, ScalarType::Float, {-1, -1});
  const int64_t rows = delta.size(0), columns = delta.size(1);
  check("grad", grad, delta, ScalarType::Float, {rows, columns});
  check("inv_scale", inv_scale, delta, ScalarType::Float, {columns});
  Tensor out = torch::stable::empty_like(delta);
  andfast::cpu::projected_step(read<float>(delta), read<float>(grad), read<float>(inv_scale), write<float>(out), rows,
                               columns, step_size, epsilon, parallel_for);
  return out;
}

// The sizes of a block whose tensors hold a border of `border` pixels.
BlockShape block_shape(const char* name, const Tensor& tensor, const Tensor& bend, int64_t border) {
  check(name, tensor, tensor, tensor.scalar_type(), {-1, -1, -1, -1});
  check("bend", bend, tensor, ScalarType::Float, {-1});
  const BlockShape shape = {bend.size(0), tensor.size(0), tensor.size(1) - 2 * border, tensor.size(2) - 2 * border,
                            tensor.size(3)};
  check_border(border);
  STD_TORCH_CHECK(shape.height > 0 && shape.width > 0 && shape.channels > 0, name, " must hold pixels");
  check_networks(name, shape.networks, shape.images);
  return shape;
}

andfast::cpu::Noise block_noise(const Tensor& noise, const std::optional<Tensor>& seed, int64_t layer,
                                const Tensor& like, const BlockShape& shape) {
  if (!seed) {
    check("noise", noise, like, ScalarType::Float, {shape.networks, shape.height, shape.width});
    return {read<float>(noise), nullptr, layer};
  }
  check("noise", noise, like, ScalarType::Float, {shape.networks, shape.channels});
  check("seed", *seed, like, ScalarType::Long, {shape.networks});
  return {read<float>(noise), read<int64_t>(*seed), layer};
}

void check_second(const Tensor& a, const std::optional<Tensor>& b, const BlockShape& shape) {
  if (b) check("b", *b, a, a.scalar_type(), sizes_of(shape, 0));
}

std::tuple<Tensor, Tensor> block_tail(const Tensor& a, const std::optional<Tensor>& b, const Tensor& bend,
                                      const Tensor& noise, const std::optional<Tensor>& seed, int64_t layer,
                                      int64_t border) {
  const BlockShape shape = block_shape("a", a, bend, 0);
  check_border(border);
  check_second(a, b, shape);
  const auto added = block_noise(noise, seed, layer, a, shape);
  Tensor y = empty(a, sizes_of(shape, border), a.scalar_type());
  Tensor signs = empty(a, sign_sizes(shape), ScalarType::Byte);
  by_type("a", a, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    andfast::cpu::block_tail<T>(read<T>(a), b ? read<T>(*b) : nullptr, read<float>(bend), added, write<T>(y),
                                write<uint8_t>(signs), shape, border, parallel_for);
  });
  return {y, signs};
}

std::tuple<Tensor, Tensor, Tensor> block_tail_grad(const Tensor& dy, const Tensor& y, const Tensor& signs,
                                                   const Tensor& bend, const Tensor& noise,
                                                   const std::optional<Tensor>& seed, int64_t layer,
                                                   int64_t border) {
  const BlockShape shape = block_shape("dy", dy, bend, border);
  check("y", y, dy, dy.scalar_type(), sizes_of(shape, border));
  check("signs", signs, dy, ScalarType::Byte, sign_sizes(shape));
  const auto added = block_noise(noise, seed, layer, dy, shape);
  Tensor dz = empty(dy, sizes_of(shape, 0), dy.scalar_type());
  Tensor dbend = torch::stable::empty_like(bend), dnoise = torch::stable::empty_like(noise);
  by_type("dy", dy, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    andfast::cpu::block_tail_grad<T>(read<T>(dy), read<T>(y), read<uint8_t>(signs), read<float>(bend), added,
                                     write<T>(dz), write<float>(dbend), write<float>(dnoise), shape, border,
                                     parallel_for);
  });
  return {dz, dbend, dnoise};
}

std::tuple<Tensor, Tensor, Tensor> block_tail_pool(const Tensor& a, const std::optional<Tensor>& b,
                                                   const Tensor& bend, const Tensor& noise,
                                                   const std::optional<Tensor>& seed, int64_t layer, int64_t scale,
                                                   int64_t border) {
  const BlockShape shape = block_shape("a", a, bend, 0);
  check_border(border);
  check_scale(shape, scale);
  check_second(a, b, shape);
  const auto added = block_noise(noise, seed, layer, a, shape);
  const BlockShape low = andfast::pooled(shape, scale);
  Tensor pooled = empty(a, sizes_of(low, border), a.scalar_type());
  Tensor negative = empty(a, sizes_of(low, 0), a.scalar_type());
  Tensor signs = empty(a, sign_sizes(shape), ScalarType::Byte);
  by_type("a", a, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    andfast::cpu::block_tail_pool<T>(read<T>(a), b ? read<T>(*b) : nullptr, read<float>(bend), added,
                                     write<T>(pooled), write<T>(negative), write<uint8_t>(signs), shape, scale,
                                     border, parallel_for);
  });
  return {pooled, negative, signs};
}

Tensor block_tail_pool_grad(const Tensor& dpooled, const Tensor& signs, const Tensor& bend, int64_t scale) {
  BlockShape shape = block_shape("dpooled", dpooled, bend, 0);
  STD_TORCH_CHECK(scale >= 2, "scale must be at least 2, got ", scale);
  shape.height *= scale, shape.width *= scale;
  check("signs", signs, dpooled, ScalarType::Byte, sign_sizes(shape));
  Tensor dz = empty(dpooled, sizes_of(shape, 0), dpooled.scalar_type());
  by_type("dpooled", dpooled, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    andfast::cpu::block_tail_pool_grad<T>(read<T>(dpooled), read<uint8_t>(signs), read<float>(bend), write<T>(dz),
                                          shape, scale, parallel_for);
  });
  return dz;
}

Tensor blur_pool(const Tensor& image, int64_t scale) {
  check("image", image, image, image.scalar_type(), {-1, -1, -1, -1});
  const BlockShape shape = {1, image.size(0), image.size(1), image.size(2), image.size(3)};
  check_scale(shape, scale);
  Tensor pooled = empty(image, sizes_of(andfast::pooled(shape, scale), 0), image.scalar_type());
  by_type("image", image, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    andfast::cpu::blur_pool<T>(read<T>(image), write<T>(pooled), shape, scale, parallel_for);
  });
  return pooled;
}

Tensor blur_pool_grad(const Tensor& grad, int64_t scale) {
  check("grad", grad, grad, grad.scalar_type(), {-1, -1, -1, -1});
  STD_TORCH_CHECK(scale >= 2, "scale must be at least 2, got ", scale);
  const BlockShape shape = {1, grad.size(0), grad.size(1) * scale, grad.size(2) * scale, grad.size(3)};
  Tensor dimage = empty(grad, sizes_of(shape, 0), grad.scalar_type());
  by_type("grad", grad, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    andfast::cpu::blur_pool_grad<T>(read<T>(grad), write<T>(dimage), shape, scale, parallel_for);
  });
  return dimage;
}

Tensor conv(const Tensor& x, const Tensor& weights, int64_t padding, bool backward) {
  check("weights", weights, x, ScalarType::Float, {-1, -1, -1, 9});
  const int64_t outputs = weights.size(1), inputs = weights.size(2);
  check("x", x, x, ScalarType::Float, {-1, -1, -1, backward ? outputs : inputs});
  const ConvShape shape = {weights.size(0), x.size(0), x.size(1), x.size(2), inputs, outputs};
  check_networks("x", shape.networks, shape.images);
  check_padding(shape, padding);
  Tensor z = empty(x, result_sizes(shape, padding, backward ? inputs : outputs), ScalarType::Float);
  andfast::cpu::conv(read<float>(x), {read<float>(weights), bank_steps(shape)}, write<float>(z), shape, padding,
                     backward, {}, parallel_for);
  return z;
}

std::tuple<Tensor, Tensor> conv_block(const Tensor& x, const Tensor& weights, const Tensor& bend, const Tensor& noise,
                                      int64_t border) {
  check("weights", weights, x, ScalarType::Float, {-1, -1, -1, 9});
  const ConvShape shape = {weights.size(0), x.size(0), x.size(1), x.size(2), weights.size(2), weights.size(1)};
  check("x", x, x, ScalarType::Float, {-1, -1, -1, shape.inputs});
  check_networks("x", shape.networks, shape.images);
  check_padding(shape, 0);
  check_border(border);
  const BlockShape block = {shape.networks, shape.images, shape.height - 2, shape.width - 2, shape.outputs};
  check("bend", bend, x, ScalarType::Float, {shape.networks});
  check("noise", noise, x, ScalarType::Float, {shape.networks, block.height, block.width});
  Tensor y = empty(x, sizes_of(block, border), ScalarType::Float);
  Tensor signs = empty(x, sign_sizes(block), ScalarType::Byte);
  andfast::cpu::conv_block(read<float>(x), {read<float>(weights), bank_steps(shape)}, read<float>(bend),
                           read<float>(noise), write<float>(y), write<uint8_t>(signs), shape, border, parallel_for);
  return {y, signs};
}

Tensor conv_weight_grad(const Tensor& x, const Tensor& dz, int64_t networks) {
  check("x", x, x, ScalarType::Float, {-1, -1, -1, -1});
  const ConvShape shape = {networks, x.size(0), x.size(1), x.size(2), x.size(3), dz.size(-1)};
  check("dz", dz, x, ScalarType::Float, {shape.images, shape.height - 2, shape.width - 2, -1});
  check_networks("x", shape.networks, shape.images);
  Tensor grad = empty(dz, {networks, shape.outputs, shape.inputs, 9}, ScalarType::Float);
  andfast::cpu::conv_weight_grad(read<float>(x), read<float>(dz), write<float>(grad), shape, 0, bank_steps(shape),
                                 parallel_for);
  return grad;
}

std::tuple<Tensor, Tensor> conv_act(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& slope,
                                    bool keep) {
  const WeightSteps steps = weight_steps("weight", weight, x, ScalarType::Float, -1, -1);
  const ConvShape shape = {1, x.size(0), x.size(1), x.size(2), weight.size(1), weight.size(0)};
  check("x", x, x, ScalarType::Float, {-1, -1, -1, shape.inputs});
  check("bias", bias, x, ScalarType::Float, {shape.outputs});
  check("slope", slope, x, ScalarType::Float, {shape.outputs});
  check_padding(shape, 1);
  Tensor y = empty(x, result_sizes(shape, 1, shape.outputs), ScalarType::Float);
  Tensor signs = empty(x, {keep ? shape.images : 0, shape.height, shape.width, (shape.outputs + 7) / 8},
                       ScalarType::Byte);
  andfast::cpu::conv(read<float>(x), {read<float>(weight), steps}, write<float>(y), shape, 1, false,
                     {read<float>(bias), read<float>(slope), keep ? write<uint8_t>(signs) : nullptr}, parallel_for);
  return {y, signs};
}

// How many pixels and channels an image (B, H, W, C) and its slopes (C,) have.
std::tuple<int64_t, int64_t> leaky_sizes(const char* name, const Tensor& image, const Tensor& slope) {
  check(name, image, image, image.scalar_type(), {-1, -1, -1, -1});
  check("slope", slope, image, ScalarType::Float, {image.size(3)});
  return {image.size(0) * image.size(1) * image.size(2), image.size(3)};
}

std::tuple<Tensor, Tensor> leaky(const Tensor& z, const Tensor& slope, bool keep) {
  const auto [pixels, channels] = leaky_sizes("z", z, slope);
  Tensor y = torch::stable::empty_like(z);
  Tensor signs = empty(z, {keep ? z.size(0) : 0, z.size(1), z.size(2), (channels + 7) / 8}, ScalarType::Byte);
  by_type("z", z, [&, count = pixels, each = channels](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    andfast::cpu::leaky<T>(read<T>(z), read<float>(slope), write<T>(y), keep ? write<uint8_t>(signs) : nullptr, count,
                           each, parallel_for);
  });
  return {y, signs};
}

Tensor leaky_grad(const Tensor& dy, const Tensor& signs, const Tensor& slope) {
  const auto [pixels, channels] = leaky_sizes("dy", dy, slope);
  check("signs", signs, dy, ScalarType::Byte, {dy.size(0), dy.size(1), dy.size(2), (channels + 7) / 8});
  Tensor dz = torch::stable::empty_like(dy);
  by_type("dy", dy, [&, count = pixels, each = channels](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    andfast::cpu::leaky_grad<T>(read<T>(dy), read<float>(slope), read<uint8_t>(signs), write<T>(dz), count, each,
                                parallel_for);
  });
  return dz;
}

Tensor turn_weights(const std::vector<Tensor>& weights, int64_t first, int64_t count, double gain) {
  const Tensor& one = weights[0];  // there is one: an empty list would not have been dispatched here
  STD_TORCH_CHECK(first >= 0 && count >= 0, "first and count must not be negative");
  int64_t outputs = 0;
  for (const Tensor& weight : weights) {
    weight_steps("weights", weight, one, one.scalar_type(), -1, -1);
    STD_TORCH_CHECK(weight.size(1) >= first + count, "weights must have ", first + count, " inputs or more");
    outputs += weight.size(0);
  }
  Tensor turned = empty(one, {count, 3, 3, outputs}, one.scalar_type());
  by_type("weights", one, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    std::vector<andfast::cpu::WeightsOf<T>> taps;
    for (const Tensor& weight : weights) {
      taps.push_back({read<T>(weight), weight_steps("weights", weight, one, one.scalar_type(), -1, -1), weight.size(0)});
    }
    andfast::cpu::turn_weights<T>(taps, first, count, float(gain), write<T>(turned), parallel_for);
  });
  return turned;
}

Tensor conv_act_input_grad(const Tensor& dz, const Tensor& weight) {
  const WeightSteps steps = weight_steps("weight", weight, dz, ScalarType::Float, -1, -1);
  const ConvShape shape = {1, dz.size(0), dz.size(1), dz.size(2), weight.size(1), weight.size(0)};
  check("dz", dz, dz, ScalarType::Float, {-1, -1, -1, shape.outputs});
  check_padding(shape, 1);
  Tensor dx = empty(dz, result_sizes(shape, 1, shape.inputs), ScalarType::Float);
  andfast::cpu::conv(read<float>(dz), {read<float>(weight), steps}, write<float>(dx), shape, 1, true, {},
                     parallel_for);
  return dx;
}

Tensor conv_act_weight_grad(const Tensor& x, const Tensor& dz, const Tensor& weight) {
  const WeightSteps steps = weight_steps("weight", weight, x, ScalarType::Float, -1, -1);
  const ConvShape shape = {1, x.size(0), x.size(1), x.size(2), weight.size(1), weight.size(0)};
  check("x", x, x, ScalarType::Float, {-1, -1, -1, shape.inputs});
  check("dz", dz, x, ScalarType::Float, {shape.images, shape.height, shape.width, shape.outputs});
  Tensor grad = torch::stable::empty_like(weight);
  andfast::cpu::conv_weight_grad(read<float>(x), read<float>(dz), write<float>(grad), shape, 1, steps, parallel_for);
  return grad;
}

// The sizes of a dense block on `x`, its weights checked.
DenseShape dense_shape(const char* name, const Tensor& x, const std::vector<Tensor>& weights) {
  STD_TORCH_CHECK(weights.size() == andfast::cpu::kDenseConvs, "weights must be ", andfast::cpu::kDenseConvs);
  check(name, x, x, ScalarType::Float, {-1, -1, -1, -1});
  const DenseShape shape = {x.size(0), x.size(1), x.size(2), x.size(3), weights[0].size(0)};
  STD_TORCH_CHECK(shape.height > 0 && shape.width > 0 && shape.features > 0, name, " must hold pixels");
  STD_TORCH_CHECK(shape.growth > 0, "a dense block's convolutions must have outputs");
  return shape;
}

std::vector<WeightSteps> dense_steps(const std::vector<Tensor>& weights, const Tensor& like, const DenseShape& shape) {
  std::vector<WeightSteps> steps;
  for (int64_t k = 0; k < andfast::cpu::kDenseConvs; ++k) {
    const int64_t outputs = k + 1 < andfast::cpu::kDenseConvs ? shape.growth : shape.features;
    const int64_t inputs = shape.features + k * shape.growth;
    steps.push_back(weight_steps("weights", weights[k], like, ScalarType::Float, outputs, inputs));
  }
  return steps;
}

std::vector<Weights> dense_weights(const std::vector<Tensor>& weights, const Tensor& like, const DenseShape& shape) {
  std::vector<Weights> found;
  const std::vector<WeightSteps> steps = dense_steps(weights, like, shape);
  for (size_t k = 0; k < weights.size(); ++k) found.push_back({read<float>(weights[k]), steps[k]});
  return found;
}

Sizes grown_sizes(const DenseShape& shape) {
  return {shape.images, shape.height, shape.width, (andfast::cpu::kDenseConvs - 1) * shape.growth};
}
Sizes grown_sign_sizes(const DenseShape& shape) {
  return {shape.images, shape.height, shape.width, andfast::cpu::kDenseConvs - 1, (shape.growth + 7) / 8};
}

std::tuple<Tensor, Tensor, Tensor> dense_block(const Tensor& x, const std::vector<Tensor>& weights,
                                               const std::vector<Tensor>& biases, double slope, double gain,
                                               bool keep) {
  const DenseShape shape = dense_shape("x", x, weights);
  const std::vector<Weights> taps = dense_weights(weights, x, shape);
  STD_TORCH_CHECK(biases.size() == weights.size(), "biases must be as many as weights");
  std::vector<const float*> offsets;
  for (size_t k = 0; k < biases.size(); ++k) {
    check("biases", biases[k], x, ScalarType::Float, {weights[k].size(0)});
    offsets.push_back(read<float>(biases[k]));
  }
  Tensor y = torch::stable::empty_like(x);
  Tensor grown = empty(x, grown_sizes(shape), ScalarType::Float);
  Sizes sizes = grown_sign_sizes(shape);
  if (!keep) sizes[0] = 0;
  Tensor signs = empty(x, sizes, ScalarType::Byte);
  andfast::cpu::dense_block(read<float>(x), taps, offsets, shape, {float(slope), float(gain)}, write<float>(y),
                            write<float>(grown), keep ? write<uint8_t>(signs) : nullptr, parallel_for);
  return {y, grown, signs};
}

std::tuple<Tensor, Tensor> dense_block_input_grad(const Tensor& dy, const std::vector<Tensor>& weights,
                                                  const Tensor& signs, double slope, double gain) {
  const DenseShape shape = dense_shape("dy", dy, weights);
  check("signs", signs, dy, ScalarType::Byte, grown_sign_sizes(shape));
  Tensor dx = torch::stable::empty_like(dy), dgrown = empty(dy, grown_sizes(shape), ScalarType::Float);
  andfast::cpu::dense_block_input_grad(read<float>(dy), dense_weights(weights, dy, shape), read<uint8_t>(signs), shape,
                                       {float(slope), float(gain)}, write<float>(dx), write<float>(dgrown),
                                       parallel_for);
  return {dx, dgrown};
}

std::vector<Tensor> dense_block_weight_grad(const Tensor& x, const Tensor& grown, const Tensor& dy,
                                            const Tensor& dgrown, const std::vector<Tensor>& weights, double gain) {
  const DenseShape shape = dense_shape("x", x, weights);
  check("dy", dy, x, ScalarType::Float, {shape.images, shape.height, shape.width, shape.features});
  check("grown", grown, x, ScalarType::Float, grown_sizes(shape));
  check("dgrown", dgrown, x, ScalarType::Float, grown_sizes(shape));
  const std::vector<WeightSteps> steps = dense_steps(weights, x, shape);
  std::vector<Tensor> grads;
  std::vector<float*> to;
  for (const Tensor& weight : weights) grads.push_back(torch::stable::empty_like(weight));
  for (Tensor& grad : grads) to.push_back(write<float>(grad));
  andfast::cpu::dense_block_weight_grad(read<float>(x), read<float>(grown), read<float>(dy), read<float>(dgrown), shape,
                                        {0, float(gain)}, to, steps, parallel_for);
  return grads;
}

Tensor rotate_taps(const Tensor& matrix, const Tensor& basis) {
  check("basis", basis, matrix, ScalarType::Float, {9, 9});
  STD_TORCH_CHECK(matrix.scalar_type() == ScalarType::Float, "matrix must be of type float32");
  STD_TORCH_CHECK(matrix.dim() == 2 && matrix.size(1) % 9 == 0, "matrix must have the shape (N, a multiple of 9)");
  STD_TORCH_CHECK(matrix.size(1) == 0 || matrix.stride(1) == 1, "the rows of matrix must be contiguous");
  Tensor rotated = empty(matrix, {matrix.size(0), matrix.size(1)}, ScalarType::Float);
  andfast::cpu::rotate_taps(read<float>(matrix), matrix.stride(0), read<float>(basis), write<float>(rotated),
                            matrix.size(0), matrix.size(1) / 9, parallel_for);
  return rotated;
}

Tensor identity_last(const std::vector<Tensor>& centres) {
  const Tensor& first = centres[0];  // there is one: an empty list would not have been dispatched here
  check("centres[0]", first, first, ScalarType::Float, {-1, -1, -1});
  const int64_t networks = first.size(0);
  std::vector<const float*> taps;
  std::vector<int64_t> widths = {first.size(2)};
  for (const Tensor& centre : centres) {
    check("centres", centre, first, ScalarType::Float, {networks, -1, widths.back()});
    taps.push_back(read<float>(centre));
    widths.push_back(centre.size(1));
  }
  Tensor inverse = empty(first, {networks, widths[0], widths.back()}, ScalarType::Float);
  andfast::cpu::identity_last(taps, widths, write<float>(inverse), networks, parallel_for);
  return inverse;
}

Tensor gaussian_field(const Tensor& seed, int64_t layer, int64_t images, int64_t height, int64_t width) {
  check("seed", seed, seed, ScalarType::Long, {-1});
  STD_TORCH_CHECK(images >= 0 && height >= 0 && width >= 0, "sizes must not be negative");
  Tensor field = empty(seed, {seed.size(0) * images, height, width}, ScalarType::Float);
  andfast::cpu::gaussian_field(read<int64_t>(seed), write<float>(field), seed.size(0), images, height * width, layer,
                               parallel_for);
  return field;
}

}  // namespace

STABLE_TORCH_LIBRARY(andfast, m) {
  m.def("projected_step(Tensor delta, Tensor grad, Tensor inv_scale, float step_size, float epsilon) -> Tensor");
  m.def(
      "block_tail(Tensor a, Tensor? b, Tensor bend, Tensor noise, Tensor? seed, int layer, int border) "
      "-> (Tensor, Tensor)");
  m.def(
      "block_tail_grad(Tensor dy, Tensor y, Tensor signs, Tensor bend, Tensor noise, Tensor? seed, int layer, "
      "int border) -> (Tensor, Tensor, Tensor)");
  m.def(
      "block_tail_pool(Tensor a, Tensor? b, Tensor bend, Tensor noise, Tensor? seed, int layer, int scale, "
      "int border) -> (Tensor, Tensor, Tensor)");
  m.def("block_tail_pool_grad(Tensor dpooled, Tensor signs, Tensor bend, int scale) -> Tensor");
  m.def("blur_pool(Tensor image, int scale) -> Tensor");
  m.def("blur_pool_grad(Tensor grad, int scale) -> Tensor");
  m.def("identity_last(Tensor[] centres) -> Tensor");
  m.def("conv(Tensor x, Tensor weights, int padding, bool backward) -> Tensor");
  m.def("conv_block(Tensor x, Tensor weights, Tensor bend, Tensor noise, int border) -> (Tensor, Tensor)");
  m.def("conv_weight_grad(Tensor x, Tensor dz, int networks) -> Tensor");
  m.def("conv_act(Tensor x, Tensor weight, Tensor bias, Tensor slope, bool keep) -> (Tensor, Tensor)");
  m.def("leaky(Tensor z, Tensor slope, bool keep) -> (Tensor, Tensor)");
  m.def("leaky_grad(Tensor dy, Tensor signs, Tensor slope) -> Tensor");
  m.def("turn_weights(Tensor[] weights, int first, int count, float gain) -> Tensor");
  m.def("conv_act_input_grad(Tensor dz, Tensor weight) -> Tensor");
  m.def("conv_act_weight_grad(Tensor x, Tensor dz, Tensor weight) -> Tensor");
  m.def(
      "dense_block(Tensor x, Tensor[] weights, Tensor[] biases, float slope, float gain, bool keep) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "dense_block_input_grad(Tensor dy, Tensor[] weights, Tensor signs, float slope, float gain) "
      "-> (Tensor, Tensor)");
  m.def(
      "dense_block_weight_grad(Tensor x, Tensor grown, Tensor dy, Tensor dgrown, Tensor[] weights, float gain) "
      "-> Tensor[]");
  m.def("rotate_taps(Tensor matrix, Tensor basis) -> Tensor");
  m.def("gaussian_field(Tensor seed, int layer, int images, int height, int width) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(andfast, CPU, m) {
  m.impl("projected_step", TORCH_BOX(&projected_step));
  m.impl("block_tail", TORCH_BOX(&block_tail));
  m.impl("block_tail_grad", TORCH_BOX(&block_tail_grad));
  m.impl("block_tail_pool", TORCH_BOX(&block_tail_pool));
  m.impl("block_tail_pool_grad", TORCH_BOX(&block_tail_pool_grad));
  m.impl("blur_pool", TORCH_BOX(&blur_pool));
  m.impl("blur_pool_grad", TORCH_BOX(&blur_pool_grad));
  m.impl("conv", TORCH_BOX(&conv));
  m.impl("conv_block", TORCH_BOX(&conv_block));
  m.impl("conv_weight_grad", TORCH_BOX(&conv_weight_grad));
  m.impl("conv_act", TORCH_BOX(&conv_act));
  m.impl("leaky", TORCH_BOX(&leaky));
  m.impl("leaky_grad", TORCH_BOX(&leaky_grad));
  m.impl("turn_weights", TORCH_BOX(&turn_weights));
  m.impl("conv_act_input_grad", TORCH_BOX(&conv_act_input_grad));
  m.impl("conv_act_weight_grad", TORCH_BOX(&conv_act_weight_grad));
  m.impl("dense_block", TORCH_BOX(&dense_block));
  m.impl("dense_block_input_grad", TORCH_BOX(&dense_block_input_grad));
  m.impl("dense_block_weight_grad", TORCH_BOX(&dense_block_weight_grad));
  m.impl("rotate_taps", TORCH_BOX(&rotate_taps));
  m.impl("identity_last", TORCH_BOX(&identity_last));
  m.impl("gaussian_field", TORCH_BOX(&gaussian_field));
}

// What andfast/ops/_extension.py asks: the hash of the csrc/ this was built from, and the compiler.
extern "C" const char* andfast_source_hash() { return ANDFAST_SOURCE_HASH; }

#if defined(__clang__)
extern "C" const char* andfast_compiler() { return __VERSION__; }
#elif defined(__GNUC__)
extern "C" const char* andfast_compiler() { return "GCC " __VERSION__; }
#else
extern "C" const char* andfast_compiler() { return "unknown"; }
#endif
