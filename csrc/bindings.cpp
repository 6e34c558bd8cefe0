// The only file that knows torch, through its stable ABI: schemas, checks and registration. Built against one torch
// release, it loads in later ones. The checks guard the kernels' memory; andfast/ops gives the friendly errors.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/kernels.h"

namespace {

using andfast::cpu::bfloat16;
using andfast::cpu::BlockShape;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void parallel_for(int64_t count, int64_t grain, const andfast::cpu::Task& task) {
  torch::stable::parallel_for(0, count, grain, task);
}

using Sizes = std::vector<int64_t>;

// Raises unless the tensor is a contiguous CPU tensor of this type and shape; -1 stands for any size.
void check(const char* name, const Tensor& tensor, ScalarType type, const Sizes& sizes) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.is_contiguous(), name, " must be a contiguous CPU tensor");
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, " must be of type ", torch::headeronly::toString(type));
  bool fits = tensor.dim() == int64_t(sizes.size());
  std::string wanted;
  for (size_t i = 0; i < sizes.size(); ++i) {
    fits = fits && (sizes[i] == -1 || tensor.size(i) == sizes[i]);
    wanted += (i ? ", " : "") + (sizes[i] == -1 ? "any" : std::to_string(sizes[i]));
  }
  STD_TORCH_CHECK(fits, name, " must have the shape (", wanted, ")");
}

Tensor empty(const Tensor& like, const Sizes& sizes, ScalarType type) {
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(sizes.data(), sizes.size()), type);
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
  check("delta", delta, ScalarType::Float, {-1, -1});
  const int64_t rows = delta.size(0), columns = delta.size(1);
  check("grad", grad, ScalarType::Float, {rows, columns});
  check("inv_scale", inv_scale, ScalarType::Float, {columns});
  Tensor out = torch::stable::empty_like(delta);
  andfast::cpu::projected_step(read<float>(delta), read<float>(grad), read<float>(inv_scale), write<float>(out), rows,
                               columns, step_size, epsilon, parallel_for);
  return out;
}

int64_t sign_bytes(int64_t channels) { return (channels + 7) / 8; }

// The sizes of a block whose tensors hold a border of `border` pixels.
BlockShape block_shape(const char* name, const Tensor& tensor, const Tensor& bend, int64_t border) {
  check(name, tensor, tensor.scalar_type(), {-1, -1, -1, -1});
  check("bend", bend, ScalarType::Float, {-1});
  const BlockShape shape = {bend.size(0), tensor.size(0), tensor.size(1) - 2 * border, tensor.size(2) - 2 * border,
                            tensor.size(3)};
  STD_TORCH_CHECK(border == 0 || border == 1, "border must be 0 or 1, got ", border);
  STD_TORCH_CHECK(shape.height > 0 && shape.width > 0 && shape.channels > 0, name, " must hold pixels");
  STD_TORCH_CHECK(shape.networks > 0 && shape.images % shape.networks == 0, name, " holds ", shape.images,
                  " images, which is no multiple of the number of networks, ", shape.networks);
  return shape;
}

void check_scale(const BlockShape& shape, int64_t scale) {
  STD_TORCH_CHECK(scale >= 2 && shape.height % scale == 0 && shape.width % scale == 0,
                  "height and width must be multiples of scale, which must be at least 2");
}

andfast::cpu::Noise block_noise(const Tensor& noise, const std::optional<Tensor>& seed, int64_t layer,
                                const BlockShape& shape) {
  if (!seed) {
    check("noise", noise, ScalarType::Float, {shape.networks, shape.height, shape.width});
    return {read<float>(noise), nullptr, layer};
  }
  check("noise", noise, ScalarType::Float, {shape.networks, shape.channels});
  check("seed", *seed, ScalarType::Long, {shape.networks});
  return {read<float>(noise), read<int64_t>(*seed), layer};
}

void check_second(const Tensor& a, const std::optional<Tensor>& b, const BlockShape& shape) {
  if (b) check("b", *b, a.scalar_type(), {shape.images, shape.height, shape.width, shape.channels});
}

std::tuple<Tensor, Tensor> block_tail(const Tensor& a, const std::optional<Tensor>& b, const Tensor& bend,
                                      const Tensor& noise, const std::optional<Tensor>& seed, int64_t layer,
                                      int64_t border) {
  const BlockShape shape = block_shape("a", a, bend, 0);
  STD_TORCH_CHECK(border == 0 || border == 1, "border must be 0 or 1, got ", border);
  check_second(a, b, shape);
  const auto added = block_noise(noise, seed, layer, shape);
  Tensor y = empty(a, {shape.images, shape.height + 2 * border, shape.width + 2 * border, shape.channels},
                   a.scalar_type());
  Tensor signs = empty(a, {shape.images, shape.height, shape.width, sign_bytes(shape.channels)}, ScalarType::Byte);
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
  check("y", y, dy.scalar_type(), {shape.images, shape.height + 2 * border, shape.width + 2 * border, shape.channels});
  check("signs", signs, ScalarType::Byte, {shape.images, shape.height, shape.width, sign_bytes(shape.channels)});
  const auto added = block_noise(noise, seed, layer, shape);
  Tensor dz = empty(dy, {shape.images, shape.height, shape.width, shape.channels}, dy.scalar_type());
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
  STD_TORCH_CHECK(border == 0 || border == 1, "border must be 0 or 1, got ", border);
  check_scale(shape, scale);
  check_second(a, b, shape);
  const auto added = block_noise(noise, seed, layer, shape);
  const int64_t height = shape.height / scale, width = shape.width / scale;
  Tensor pooled = empty(a, {shape.images, height + 2 * border, width + 2 * border, shape.channels}, a.scalar_type());
  Tensor negative = empty(a, {shape.images, height, width, shape.channels}, a.scalar_type());
  Tensor signs = empty(a, {shape.images, shape.height, shape.width, sign_bytes(shape.channels)}, ScalarType::Byte);
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
  check("signs", signs, ScalarType::Byte, {shape.images, shape.height, shape.width, sign_bytes(shape.channels)});
  Tensor dz = empty(dpooled, {shape.images, shape.height, shape.width, shape.channels}, dpooled.scalar_type());
  by_type("dpooled", dpooled, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    andfast::cpu::block_tail_pool_grad<T>(read<T>(dpooled), read<uint8_t>(signs), read<float>(bend), write<T>(dz),
                                          shape, scale, parallel_for);
  });
  return dz;
}

Tensor blur_pool(const Tensor& image, int64_t scale) {
  check("image", image, image.scalar_type(), {-1, -1, -1, -1});
  const BlockShape shape = {1, image.size(0), image.size(1), image.size(2), image.size(3)};
  check_scale(shape, scale);
  Tensor pooled = empty(image, {shape.images, shape.height / scale, shape.width / scale, shape.channels},
                        image.scalar_type());
  by_type("image", image, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    andfast::cpu::blur_pool<T>(read<T>(image), write<T>(pooled), shape, scale, parallel_for);
  });
  return pooled;
}

Tensor blur_pool_grad(const Tensor& grad, int64_t scale) {
  check("grad", grad, grad.scalar_type(), {-1, -1, -1, -1});
  STD_TORCH_CHECK(scale >= 2, "scale must be at least 2, got ", scale);
  const BlockShape shape = {1, grad.size(0), grad.size(1) * scale, grad.size(2) * scale, grad.size(3)};
  Tensor dimage = empty(grad, {shape.images, shape.height, shape.width, shape.channels}, grad.scalar_type());
  by_type("grad", grad, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    andfast::cpu::blur_pool_grad<T>(read<T>(grad), write<T>(dimage), shape, scale, parallel_for);
  });
  return dimage;
}

Tensor gaussian_field(const Tensor& seed, int64_t layer, int64_t images, int64_t height, int64_t width) {
  check("seed", seed, ScalarType::Long, {-1});
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
