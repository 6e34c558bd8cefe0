// The CPU's convolutions, and the generators' operators that are made of them: schemas, checks and registration.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "bindings_cpu.h"

namespace {

using namespace andfast;  // check, empty and the rest of bindings.h
using andfast::cpu::bfloat16;
using andfast::cpu::BlockShape;
using andfast::cpu::ConvShape;
using andfast::cpu::DenseShape;
using andfast::cpu::Weights;
using andfast::cpu::WeightsOf;
using andfast::cpu::WeightSteps;

// Strides of the weights of N networks, (N, out, in, 9).
WeightSteps bank_steps(const ConvShape& shape) { return {shape.outputs * shape.inputs * 9, shape.inputs * 9, 9, 1}; }

// Strides of a convolution's weight (out, in, 3, 3), contiguous or channels_last; -1 means any size.
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

Tensor conv(const Tensor& x, const Tensor& weights, int64_t padding, bool backward) {
  check("weights", weights, x, ScalarType::Float, {-1, -1, -1, 9});
  const int64_t outputs = weights.size(1), inputs = weights.size(2);
  check("x", x, x, ScalarType::Float, {-1, -1, -1, backward ? outputs : inputs});
  const ConvShape shape = {weights.size(0), x.size(0), x.size(1), x.size(2), inputs, outputs};
  check_networks("x", shape.networks, shape.images);
  check_padding(shape, padding);
  Tensor z = empty(x, result_sizes(shape, padding, backward ? inputs : outputs), ScalarType::Float);
  andfast::cpu::conv(read<float>(x), {read<float>(weights), bank_steps(shape)}, write<float>(z), shape, padding,
                     backward, {}, torch::stable::get_num_threads(), parallel_for);
  return z;
}

std::tuple<Tensor, Tensor> conv_block(const Tensor& x, const Tensor& weights, const Tensor& slope_minus_one,
                                      const Tensor& noise, int64_t border) {
  check("weights", weights, x, ScalarType::Float, {-1, -1, -1, 9});
  const ConvShape shape = {weights.size(0), x.size(0), x.size(1), x.size(2), weights.size(2), weights.size(1)};
  check("x", x, x, ScalarType::Float, {-1, -1, -1, shape.inputs});
  check_networks("x", shape.networks, shape.images);
  check_padding(shape, 0);
  check_border(border);
  const BlockShape block = {shape.networks, shape.images, shape.height - 2, shape.width - 2, shape.outputs};
  check("slope_minus_one", slope_minus_one, x, ScalarType::Float, {shape.networks});
  check("noise", noise, x, ScalarType::Float, {shape.networks, block.height, block.width});
  Tensor y = empty(x, sizes_of(block, border), ScalarType::Float);
  Tensor sign_mask = empty(x, sign_mask_sizes(block), ScalarType::Byte);
  andfast::cpu::conv_block(read<float>(x), {read<float>(weights), bank_steps(shape)}, read<float>(slope_minus_one),
                           read<float>(noise), write<float>(y), write<uint8_t>(sign_mask), shape, border,
                           torch::stable::get_num_threads(), parallel_for);
  return {y, sign_mask};
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
                                    bool save_for_backward) {
  const WeightSteps steps = weight_steps("weight", weight, x, ScalarType::Float, -1, -1);
  const ConvShape shape = {1, x.size(0), x.size(1), x.size(2), weight.size(1), weight.size(0)};
  check("x", x, x, ScalarType::Float, {-1, -1, -1, shape.inputs});
  check("bias", bias, x, ScalarType::Float, {shape.outputs});
  check("slope", slope, x, ScalarType::Float, {shape.outputs});
  check_padding(shape, 1);
  Tensor y = empty(x, result_sizes(shape, 1, shape.outputs), ScalarType::Float);
  Tensor sign_mask = empty(
      x, {save_for_backward ? shape.images : 0, shape.height, shape.width, (shape.outputs + 7) / 8}, ScalarType::Byte);
  andfast::cpu::conv(read<float>(x), {read<float>(weight), steps}, write<float>(y), shape, 1, false,
                     {read<float>(bias), read<float>(slope), save_for_backward ? write<uint8_t>(sign_mask) : nullptr},
                     torch::stable::get_num_threads(), parallel_for);
  return {y, sign_mask};
}

// The number of pixels and of channels of an image (B, H, W, C); checks its slopes (C,).
std::tuple<int64_t, int64_t> leaky_relu_sizes(const char* name, const Tensor& image, const Tensor& slope) {
  check(name, image, image, image.scalar_type(), {-1, -1, -1, -1});
  check("slope", slope, image, ScalarType::Float, {image.size(3)});
  return {image.size(0) * image.size(1) * image.size(2), image.size(3)};
}

std::tuple<Tensor, Tensor> leaky_relu(const Tensor& z, const Tensor& slope, bool save_for_backward) {
  const auto [pixels, channels] = leaky_relu_sizes("z", z, slope);
  Tensor y = torch::stable::empty_like(z);
  Tensor sign_mask =
      empty(z, {save_for_backward ? z.size(0) : 0, z.size(1), z.size(2), (channels + 7) / 8}, ScalarType::Byte);
  by_type("z", z, [&, count = pixels, each = channels](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    andfast::cpu::leaky_relu<T>(read<T>(z), read<float>(slope), write<T>(y),
                                save_for_backward ? write<uint8_t>(sign_mask) : nullptr, count, each, parallel_for);
  });
  return {y, sign_mask};
}

Tensor leaky_relu_backward(const Tensor& dy, const Tensor& sign_mask, const Tensor& slope) {
  const auto [pixels, channels] = leaky_relu_sizes("dy", dy, slope);
  check("sign_mask", sign_mask, dy, ScalarType::Byte, {dy.size(0), dy.size(1), dy.size(2), (channels + 7) / 8});
  Tensor dz = torch::stable::empty_like(dy);
  by_type("dy", dy, [&, count = pixels, each = channels](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    andfast::cpu::leaky_relu_backward<T>(read<T>(dy), read<float>(slope), read<uint8_t>(sign_mask), write<T>(dz), count,
                                         each, parallel_for);
  });
  return dz;
}

Tensor flip_transpose(const std::vector<Tensor>& weights, int64_t first, int64_t count, double gain) {
  const Tensor& one = weights[0];  // not empty: the dispatcher needs a tensor to get here
  STD_TORCH_CHECK(first >= 0 && count >= 0, "first and count must not be negative");
  int64_t outputs = 0;
  for (const Tensor& weight : weights) {
    weight_steps("weights", weight, one, one.scalar_type(), -1, -1);
    STD_TORCH_CHECK(weight.size(1) >= first + count, "weights must have ", first + count, " inputs or more");
    outputs += weight.size(0);
  }
  Tensor flipped = empty(one, {count, 3, 3, outputs}, one.scalar_type());
  by_type("weights", one, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    std::vector<andfast::cpu::WeightsOf<T>> taps;
    for (const Tensor& weight : weights) {
      taps.push_back(
          {read<T>(weight), weight_steps("weights", weight, one, one.scalar_type(), -1, -1), weight.size(0)});
    }
    andfast::cpu::flip_transpose<T>(taps, first, count, float(gain), write<T>(flipped), parallel_for);
  });
  return flipped;
}

Tensor conv_act_input_grad(const Tensor& dz, const Tensor& weight) {
  const WeightSteps steps = weight_steps("weight", weight, dz, ScalarType::Float, -1, -1);
  const ConvShape shape = {1, dz.size(0), dz.size(1), dz.size(2), weight.size(1), weight.size(0)};
  check("dz", dz, dz, ScalarType::Float, {-1, -1, -1, shape.outputs});
  check_padding(shape, 1);
  Tensor dx = empty(dz, result_sizes(shape, 1, shape.inputs), ScalarType::Float);
  andfast::cpu::conv(read<float>(dz), {read<float>(weight), steps}, write<float>(dx), shape, 1, true, {},
                     torch::stable::get_num_threads(), parallel_for);
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
DenseShape dense_shape(const char* name, const Tensor& x, const std::vector<Tensor>& weights,
                       ScalarType type = ScalarType::Float) {
  STD_TORCH_CHECK(weights.size() == andfast::cpu::kDenseConvs, "weights must be ", andfast::cpu::kDenseConvs);
  check(name, x, x, type, {-1, -1, -1, -1});
  const DenseShape shape = {x.size(0), x.size(1), x.size(2), x.size(3), weights[0].size(0)};
  STD_TORCH_CHECK(shape.height > 0 && shape.width > 0 && shape.features > 0, name, " must hold pixels");
  STD_TORCH_CHECK(shape.growth > 0, "a dense block's convolutions must have outputs");
  return shape;
}

std::vector<WeightSteps> dense_steps(const std::vector<Tensor>& weights, const Tensor& like, const DenseShape& shape) {
  std::vector<WeightSteps> steps;
  for (int64_t k = 0; k < andfast::cpu::kDenseConvs; ++k) {
    const int64_t outputs = k < andfast::cpu::kIntermediates ? shape.growth : shape.features;
    const int64_t inputs = shape.features + k * shape.growth;
    steps.push_back(weight_steps("weights", weights[k], like, like.scalar_type(), outputs, inputs));
  }
  return steps;
}

std::vector<Weights> dense_weights(const std::vector<Tensor>& weights, const Tensor& like, const DenseShape& shape) {
  std::vector<Weights> found;
  const std::vector<WeightSteps> steps = dense_steps(weights, like, shape);
  for (size_t k = 0; k < weights.size(); ++k) found.push_back({read<float>(weights[k]), steps[k]});
  return found;
}

Sizes intermediate_sizes(const DenseShape& shape) {
  return {shape.images, shape.height, shape.width, andfast::cpu::kIntermediates * shape.growth};
}
Sizes intermediate_mask_sizes(const DenseShape& shape) {
  return {shape.images, shape.height, shape.width, andfast::cpu::kIntermediates, (shape.growth + 7) / 8};
}

template <typename T>
std::vector<const T*> dense_biases(const std::vector<Tensor>& biases, const std::vector<Tensor>& weights,
                                   const Tensor& like) {
  STD_TORCH_CHECK(biases.size() == weights.size(), "biases must be as many as weights");
  std::vector<const T*> offsets;
  for (size_t k = 0; k < biases.size(); ++k) {
    check("biases", biases[k], like, like.scalar_type(), {weights[k].size(0)});
    offsets.push_back(read<T>(biases[k]));
  }
  return offsets;
}

std::tuple<Tensor, Tensor, Tensor> dense_block(const Tensor& x, const std::vector<Tensor>& weights,
                                               const std::vector<Tensor>& biases, double slope, double gain,
                                               bool save_for_backward) {
  const DenseShape shape = dense_shape("x", x, weights);
  const std::vector<Weights> taps = dense_weights(weights, x, shape);
  Tensor y = torch::stable::empty_like(x);
  Tensor intermediates = empty(x, intermediate_sizes(shape), ScalarType::Float);
  Sizes sizes = intermediate_mask_sizes(shape);
  if (!save_for_backward) sizes[0] = 0;
  Tensor sign_mask = empty(x, sizes, ScalarType::Byte);
  andfast::cpu::dense_block(read<float>(x), taps, dense_biases<float>(biases, weights, x), shape,
                            {float(slope), float(gain)}, write<float>(y), write<float>(intermediates),
                            save_for_backward ? write<uint8_t>(sign_mask) : nullptr, torch::stable::get_num_threads(),
                            parallel_for);
  return {y, intermediates, sign_mask};
}

std::tuple<Tensor, Tensor> dense_block_input_grad(const Tensor& dy, const std::vector<Tensor>& weights,
                                                  const Tensor& sign_mask, double slope, double gain) {
  const DenseShape shape = dense_shape("dy", dy, weights);
  check("sign_mask", sign_mask, dy, ScalarType::Byte, intermediate_mask_sizes(shape));
  Tensor dx = torch::stable::empty_like(dy), dintermediates = empty(dy, intermediate_sizes(shape), ScalarType::Float);
  andfast::cpu::dense_block_input_grad(read<float>(dy), dense_weights(weights, dy, shape), read<uint8_t>(sign_mask),
                                       shape, {float(slope), float(gain)}, write<float>(dx),
                                       write<float>(dintermediates), torch::stable::get_num_threads(), parallel_for);
  return {dx, dintermediates};
}

bool amx_available() { return andfast::cpu::amx_available(); }

// The weights of a dense block in bfloat16, checked.
std::vector<WeightsOf<bfloat16>> amx_weights(const std::vector<Tensor>& weights, const Tensor& like,
                                             const DenseShape& shape, bool emulate) {
  STD_TORCH_CHECK(emulate || amx_available(), "this processor has no tiles for bfloat16 (AMX)");
  std::vector<WeightsOf<bfloat16>> found;
  const std::vector<WeightSteps> steps = dense_steps(weights, like, shape);
  for (size_t k = 0; k < weights.size(); ++k) {
    found.push_back({read<bfloat16>(weights[k]), steps[k], weights[k].size(0)});
  }
  return found;
}

std::tuple<Tensor, Tensor, Tensor> amx_dense_block(const Tensor& x, const std::vector<Tensor>& weights,
                                                   const std::vector<Tensor>& biases, double slope, double gain,
                                                   bool save_for_backward, bool emulate) {
  const DenseShape shape = dense_shape("x", x, weights, ScalarType::BFloat16);
  const std::vector<WeightsOf<bfloat16>> taps = amx_weights(weights, x, shape, emulate);
  Tensor y = torch::stable::empty_like(x), intermediates = empty(x, intermediate_sizes(shape), ScalarType::BFloat16);
  Sizes sizes = intermediate_mask_sizes(shape);
  if (!save_for_backward) sizes[0] = 0;
  Tensor sign_mask = empty(x, sizes, ScalarType::Byte);
  andfast::cpu::amx_dense_block(read<bfloat16>(x), taps, dense_biases<bfloat16>(biases, weights, x), shape,
                                {float(slope), float(gain)}, write<bfloat16>(y), write<bfloat16>(intermediates),
                                save_for_backward ? write<uint8_t>(sign_mask) : nullptr, emulate, parallel_for);
  return {y, intermediates, sign_mask};
}

std::tuple<Tensor, Tensor> amx_dense_block_input_grad(const Tensor& dy, const std::vector<Tensor>& weights,
                                                      const Tensor& sign_mask, double slope, double gain,
                                                      bool emulate) {
  const DenseShape shape = dense_shape("dy", dy, weights, ScalarType::BFloat16);
  check("sign_mask", sign_mask, dy, ScalarType::Byte, intermediate_mask_sizes(shape));
  Tensor dx = torch::stable::empty_like(dy);
  Tensor dintermediates = empty(dy, intermediate_sizes(shape), ScalarType::BFloat16);
  andfast::cpu::amx_dense_block_input_grad(read<bfloat16>(dy), amx_weights(weights, dy, shape, emulate),
                                           read<uint8_t>(sign_mask), shape, {float(slope), float(gain)},
                                           write<bfloat16>(dx), write<bfloat16>(dintermediates), emulate, parallel_for);
  return {dx, dintermediates};
}

std::vector<Tensor> dense_block_weight_grad(const Tensor& x, const Tensor& intermediates, const Tensor& dy,
                                            const Tensor& dintermediates, const std::vector<Tensor>& weights,
                                            double gain) {
  const DenseShape shape = dense_shape("x", x, weights);
  check("dy", dy, x, ScalarType::Float, {shape.images, shape.height, shape.width, shape.features});
  check("intermediates", intermediates, x, ScalarType::Float, intermediate_sizes(shape));
  check("dintermediates", dintermediates, x, ScalarType::Float, intermediate_sizes(shape));
  const std::vector<WeightSteps> steps = dense_steps(weights, x, shape);
  std::vector<Tensor> grads;
  std::vector<float*> to;
  for (const Tensor& weight : weights) grads.push_back(torch::stable::empty_like(weight));
  for (Tensor& grad : grads) to.push_back(write<float>(grad));
  andfast::cpu::dense_block_weight_grad(read<float>(x), read<float>(intermediates), read<float>(dy),
                                        read<float>(dintermediates), shape, {0, float(gain)}, to, steps, parallel_for);
  return grads;
}

Tensor large_chain(const Tensor& x, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
                   const std::vector<std::optional<Tensor>>& slopes, const std::vector<int64_t>& repeats) {
  STD_TORCH_CHECK(!weights.empty(), "weights must not be empty");
  const size_t count = weights.size();
  STD_TORCH_CHECK(biases.size() == count && slopes.size() == count && repeats.size() == count,
                  "weights, biases, slopes and repeats must be as many");
  std::vector<andfast::cpu::ChainConv> convs;
  int64_t enlarged = 1, channels = -1;
  for (size_t k = 0; k < count; ++k) {
    const WeightSteps steps = weight_steps("weight", weights[k], x, ScalarType::Float, -1, channels);
    const int64_t outputs = weights[k].size(0), inputs = weights[k].size(1);
    check("bias", biases[k], x, ScalarType::Float, {outputs});
    if (slopes[k]) check("slope", *slopes[k], x, ScalarType::Float, {outputs});
    STD_TORCH_CHECK(repeats[k] >= 1, "repeats must be 1 or more, not ", repeats[k]);
    STD_TORCH_CHECK(inputs > 0 && outputs > 0, "weight must have inputs and outputs");
    convs.push_back({{read<float>(weights[k]), steps},
                     read<float>(biases[k]),
                     slopes[k] ? read<float>(*slopes[k]) : nullptr,
                     inputs,
                     outputs,
                     repeats[k]});
    enlarged *= repeats[k], channels = outputs;
  }
  check("x", x, x, ScalarType::Float, {-1, -1, -1, convs[0].inputs});
  STD_TORCH_CHECK(x.size(1) > 0 && x.size(2) > 0, "x must have height and width");
  Tensor y = empty(x, {x.size(0), x.size(1) * enlarged, x.size(2) * enlarged, channels}, ScalarType::Float);
  andfast::cpu::large_chain(read<float>(x), convs, x.size(0), x.size(1), x.size(2), write<float>(y),
                            torch::stable::get_num_threads(), parallel_for);
  return y;
}

Tensor large_dense_block(const Tensor& x, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
                         double slope, double gain) {
  const DenseShape shape = dense_shape("x", x, weights);
  const std::vector<Weights> taps = dense_weights(weights, x, shape);
  Tensor y = torch::stable::empty_like(x);
  andfast::cpu::large_dense_block(read<float>(x), taps, dense_biases<float>(biases, weights, x), shape,
                                  {float(slope), float(gain)}, write<float>(y), torch::stable::get_num_threads(),
                                  parallel_for);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(andfast, m) {
  m.def("conv(Tensor x, Tensor weights, int padding, bool backward) -> Tensor");
  m.def("conv_block(Tensor x, Tensor weights, Tensor slope_minus_one, Tensor noise, int border) -> (Tensor, Tensor)");
  m.def("conv_weight_grad(Tensor x, Tensor dz, int networks) -> Tensor");
  m.def("conv_act(Tensor x, Tensor weight, Tensor bias, Tensor slope, bool save_for_backward) -> (Tensor, Tensor)");
  m.def("leaky_relu(Tensor z, Tensor slope, bool save_for_backward) -> (Tensor, Tensor)");
  m.def("leaky_relu_backward(Tensor dy, Tensor sign_mask, Tensor slope) -> Tensor");
  m.def("flip_transpose(Tensor[] weights, int first, int count, float gain) -> Tensor");
  m.def("conv_act_input_grad(Tensor dz, Tensor weight) -> Tensor");
  m.def("conv_act_weight_grad(Tensor x, Tensor dz, Tensor weight) -> Tensor");
  m.def(
      "dense_block(Tensor x, Tensor[] weights, Tensor[] biases, float slope, float gain, bool save_for_backward) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "dense_block_input_grad(Tensor dy, Tensor[] weights, Tensor sign_mask, float slope, float gain) "
      "-> (Tensor, Tensor)");
  m.def(
      "dense_block_weight_grad(Tensor x, Tensor intermediates, Tensor dy, Tensor dintermediates, Tensor[] weights, "
      "float gain) "
      "-> Tensor[]");
  m.def("amx_available() -> bool");
  m.def(
      "amx_dense_block(Tensor x, Tensor[] weights, Tensor[] biases, float slope, float gain, bool save_for_backward, "
      "bool emulate) -> (Tensor, Tensor, Tensor)");
  m.def(
      "amx_dense_block_input_grad(Tensor dy, Tensor[] weights, Tensor sign_mask, float slope, float gain, "
      "bool emulate) -> (Tensor, Tensor)");
  m.def("large_chain(Tensor x, Tensor[] weights, Tensor[] biases, Tensor?[] slopes, int[] repeats) -> Tensor");
  m.def("large_dense_block(Tensor x, Tensor[] weights, Tensor[] biases, float slope, float gain) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(andfast, CPU, m) {
  m.impl("conv", TORCH_BOX(&conv));
  m.impl("conv_block", TORCH_BOX(&conv_block));
  m.impl("conv_weight_grad", TORCH_BOX(&conv_weight_grad));
  m.impl("conv_act", TORCH_BOX(&conv_act));
  m.impl("leaky_relu", TORCH_BOX(&leaky_relu));
  m.impl("leaky_relu_backward", TORCH_BOX(&leaky_relu_backward));
  m.impl("flip_transpose", TORCH_BOX(&flip_transpose));
  m.impl("conv_act_input_grad", TORCH_BOX(&conv_act_input_grad));
  m.impl("conv_act_weight_grad", TORCH_BOX(&conv_act_weight_grad));
  m.impl("dense_block", TORCH_BOX(&dense_block));
  m.impl("dense_block_input_grad", TORCH_BOX(&dense_block_input_grad));
  m.impl("dense_block_weight_grad", TORCH_BOX(&dense_block_weight_grad));
  m.impl("amx_dense_block", TORCH_BOX(&amx_dense_block));
  m.impl("amx_dense_block_input_grad", TORCH_BOX(&amx_dense_block_input_grad));
  m.impl("large_chain", TORCH_BOX(&large_chain));
  m.impl("large_dense_block", TORCH_BOX(&large_dense_block));
}

STABLE_TORCH_LIBRARY_IMPL(andfast, CompositeExplicitAutograd, m) { m.impl("amx_available", TORCH_BOX(&amx_available)); }
