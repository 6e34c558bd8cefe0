// The bindings*.cpp are the only files that include torch, through its stable ABI: schemas, checks and registration.
// Built against one torch release, they load in later ones. The checks protect memory; andfast/ops raises the errors
// for users. This file has the operators of the degradation network and the attack, except for the convolutions.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "bindings_cpu.h"

namespace {

using namespace andfast;  // check, empty and the rest of bindings.h
using andfast::cpu::BlockShape;

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
BlockShape block_shape(const char* name, const Tensor& tensor, const Tensor& slope_minus_one, int64_t border) {
  check(name, tensor, tensor, tensor.scalar_type(), {-1, -1, -1, -1});
  check("slope_minus_one", slope_minus_one, tensor, ScalarType::Float, {-1});
  const BlockShape shape = {slope_minus_one.size(0), tensor.size(0), tensor.size(1) - 2 * border,
                            tensor.size(2) - 2 * border, tensor.size(3)};
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

std::tuple<Tensor, Tensor> block_epilogue(const Tensor& a, const std::optional<Tensor>& b,
                                          const Tensor& slope_minus_one, const Tensor& noise,
                                          const std::optional<Tensor>& seed, int64_t layer, int64_t border) {
  const BlockShape shape = block_shape("a", a, slope_minus_one, 0);
  check_border(border);
  check_second(a, b, shape);
  const auto added = block_noise(noise, seed, layer, a, shape);
  Tensor y = empty(a, sizes_of(shape, border), a.scalar_type());
  Tensor sign_mask = empty(a, sign_mask_sizes(shape), ScalarType::Byte);
  by_type("a", a, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    andfast::cpu::block_epilogue<T>(read<T>(a), b ? read<T>(*b) : nullptr, read<float>(slope_minus_one), added,
                                    write<T>(y), write<uint8_t>(sign_mask), shape, border, parallel_for);
  });
  return {y, sign_mask};
}

std::tuple<Tensor, Tensor, Tensor> block_epilogue_grad(const Tensor& dy, const Tensor& y, const Tensor& sign_mask,
                                                       const Tensor& slope_minus_one, const Tensor& noise,
                                                       const std::optional<Tensor>& seed, int64_t layer,
                                                       int64_t border) {
  const BlockShape shape = block_shape("dy", dy, slope_minus_one, border);
  check("y", y, dy, dy.scalar_type(), sizes_of(shape, border));
  check("sign_mask", sign_mask, dy, ScalarType::Byte, sign_mask_sizes(shape));
  const auto added = block_noise(noise, seed, layer, dy, shape);
  Tensor dz = empty(dy, sizes_of(shape, 0), dy.scalar_type());
  Tensor dslope = torch::stable::empty_like(slope_minus_one), dnoise = torch::stable::empty_like(noise);
  by_type("dy", dy, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    andfast::cpu::block_epilogue_grad<T>(read<T>(dy), read<T>(y), read<uint8_t>(sign_mask),
                                         read<float>(slope_minus_one), added, write<T>(dz), write<float>(dslope),
                                         write<float>(dnoise), shape, border, parallel_for);
  });
  return {dz, dslope, dnoise};
}

std::tuple<Tensor, Tensor, Tensor> block_epilogue_pool(const Tensor& a, const std::optional<Tensor>& b,
                                                       const Tensor& slope_minus_one, const Tensor& noise,
                                                       const std::optional<Tensor>& seed, int64_t layer, int64_t scale,
                                                       int64_t border) {
  const BlockShape shape = block_shape("a", a, slope_minus_one, 0);
  check_border(border);
  check_scale(shape, scale);
  check_second(a, b, shape);
  const auto added = block_noise(noise, seed, layer, a, shape);
  const BlockShape low = andfast::pooled(shape, scale);
  Tensor pooled = empty(a, sizes_of(low, border), a.scalar_type());
  Tensor negative = empty(a, sizes_of(low, 0), a.scalar_type());
  Tensor sign_mask = empty(a, sign_mask_sizes(shape), ScalarType::Byte);
  by_type("a", a, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    andfast::cpu::block_epilogue_pool<T>(read<T>(a), b ? read<T>(*b) : nullptr, read<float>(slope_minus_one), added,
                                         write<T>(pooled), write<T>(negative), write<uint8_t>(sign_mask), shape, scale,
                                         border, parallel_for);
  });
  return {pooled, negative, sign_mask};
}

Tensor block_epilogue_pool_grad(const Tensor& dpooled, const Tensor& sign_mask, const Tensor& slope_minus_one,
                                int64_t scale) {
  BlockShape shape = block_shape("dpooled", dpooled, slope_minus_one, 0);
  STD_TORCH_CHECK(scale >= 2, "scale must be at least 2, got ", scale);
  shape.height *= scale, shape.width *= scale;
  check("sign_mask", sign_mask, dpooled, ScalarType::Byte, sign_mask_sizes(shape));
  Tensor dz = empty(dpooled, sizes_of(shape, 0), dpooled.scalar_type());
  by_type("dpooled", dpooled, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    andfast::cpu::block_epilogue_pool_grad<T>(read<T>(dpooled), read<uint8_t>(sign_mask), read<float>(slope_minus_one),
                                              write<T>(dz), shape, scale, parallel_for);
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
  const Tensor& first = centres[0];  // not empty: the dispatcher needs a tensor to get here
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
      "block_epilogue(Tensor a, Tensor? b, Tensor slope_minus_one, Tensor noise, Tensor? seed, int layer, int border) "
      "-> (Tensor, Tensor)");
  m.def(
      "block_epilogue_grad(Tensor dy, Tensor y, Tensor sign_mask, Tensor slope_minus_one, Tensor noise, Tensor? seed, "
      "int layer, "
      "int border) -> (Tensor, Tensor, Tensor)");
  m.def(
      "block_epilogue_pool(Tensor a, Tensor? b, Tensor slope_minus_one, Tensor noise, Tensor? seed, int layer, int "
      "scale, "
      "int border) -> (Tensor, Tensor, Tensor)");
  m.def("block_epilogue_pool_grad(Tensor dpooled, Tensor sign_mask, Tensor slope_minus_one, int scale) -> Tensor");
  m.def("blur_pool(Tensor image, int scale) -> Tensor");
  m.def("blur_pool_grad(Tensor grad, int scale) -> Tensor");
  m.def("identity_last(Tensor[] centres) -> Tensor");
  m.def("rotate_taps(Tensor matrix, Tensor basis) -> Tensor");
  m.def("gaussian_field(Tensor seed, int layer, int images, int height, int width) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(andfast, CPU, m) {
  m.impl("projected_step", TORCH_BOX(&projected_step));
  m.impl("block_epilogue", TORCH_BOX(&block_epilogue));
  m.impl("block_epilogue_grad", TORCH_BOX(&block_epilogue_grad));
  m.impl("block_epilogue_pool", TORCH_BOX(&block_epilogue_pool));
  m.impl("block_epilogue_pool_grad", TORCH_BOX(&block_epilogue_pool_grad));
  m.impl("blur_pool", TORCH_BOX(&blur_pool));
  m.impl("blur_pool_grad", TORCH_BOX(&blur_pool_grad));
  m.impl("rotate_taps", TORCH_BOX(&rotate_taps));
  m.impl("identity_last", TORCH_BOX(&identity_last));
  m.impl("gaussian_field", TORCH_BOX(&gaussian_field));
}

// Called by andfast/ops/_extension.py: the hash of the csrc/ that this was built from, and the compiler.
extern "C" const char* andfast_source_hash() { return ANDFAST_SOURCE_HASH; }

#if defined(__clang__)
extern "C" const char* andfast_compiler() { return __VERSION__; }
#elif defined(__GNUC__)
extern "C" const char* andfast_compiler() { return "GCC " __VERSION__; }
#else
extern "C" const char* andfast_compiler() { return "unknown"; }
#endif
