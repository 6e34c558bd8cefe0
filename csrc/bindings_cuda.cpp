// CUDA implementations of the operators whose schemas are in bindings.cpp: checks, scratch memory and registration,
// through torch's stable ABI. Without CUDA only andfast_cuda_archs is compiled, and returns "".
#ifdef ANDFAST_CUDA_ARCHS

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "bindings.h"
#include "cuda/kernels.h"

namespace {

using namespace andfast;  // check, empty and the rest of bindings.h
using andfast::cuda::BlockShape;
using andfast::cuda::Type;

// Makes a tensor's device the current one for the object's lifetime, and holds that device's current stream.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* current = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &current));
    stream = static_cast<cudaStream_t>(current);
  }

  cudaStream_t stream;

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

Type element_type(const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Type::kFloat;
    case ScalarType::Half:
      return Type::kHalf;
    case ScalarType::BFloat16:
      return Type::kBFloat16;
    default:
      STD_TORCH_CHECK(false, name, " must be float32, float16 or bfloat16");
  }
}

int as_int(int64_t size) {
  STD_TORCH_CHECK(size <= std::numeric_limits<int>::max(), "a tensor has a size of ", size, ", which is too large");
  return int(size);
}

const float* floats(const Tensor& tensor) { return tensor.const_data_ptr<float>(); }
const int64_t* integers(const Tensor& tensor) { return tensor.const_data_ptr<int64_t>(); }
const uint8_t* bytes(const Tensor& tensor) { return tensor.const_data_ptr<uint8_t>(); }

// The sizes of a block whose tensors hold a border of `border` pixels and are `scale` times smaller.
BlockShape block_shape(const char* name, const Tensor& tensor, int64_t networks, int64_t border, int64_t scale) {
  check(name, tensor, tensor, tensor.scalar_type(), {-1, -1, -1, -1});
  check_border(border);
  STD_TORCH_CHECK(scale >= 1 && scale < 65536, "scale must be at least 2, got ", scale);
  const int64_t images = tensor.size(0), channels = tensor.size(3);
  const int64_t height = (tensor.size(1) - 2 * border) * scale, width = (tensor.size(2) - 2 * border) * scale;
  STD_TORCH_CHECK(height > 0 && width > 0 && channels > 0, name, " must hold pixels");
  constexpr int kMost = andfast::cuda::kMostChannels;
  STD_TORCH_CHECK(channels <= kMost, name, " has ", channels, " channels; the CUDA kernels take ", kMost, " at most");
  check_networks(name, networks, images);
  // The kernels use 32-bit offsets in an image, and no more thread blocks than pixels.
  const int64_t pixels = as_int((as_int(height) + 2 * border) * (as_int(width) + 2 * border));
  as_int(pixels * channels);
  as_int(pixels * as_int(images));
  return {as_int(networks), as_int(images), int(height), int(width), int(channels)};
}

BlockShape block_shape(const char* name, const Tensor& tensor, const Tensor& slope_minus_one, int64_t border,
                       int64_t scale) {
  check("slope_minus_one", slope_minus_one, tensor, ScalarType::Float, {-1});
  return block_shape(name, tensor, slope_minus_one.size(0), border, scale);
}

andfast::cuda::Noise block_noise(const Tensor& noise, const std::optional<Tensor>& seed, int64_t layer,
                                 const Tensor& like, const BlockShape& shape) {
  if (!seed) {
    check("noise", noise, like, ScalarType::Float, {shape.networks, shape.height, shape.width});
    return {floats(noise), nullptr, uint32_t(layer)};
  }
  check("noise", noise, like, ScalarType::Float, {shape.networks, shape.channels});
  check("seed", *seed, like, ScalarType::Long, {shape.networks});
  return {floats(noise), integers(*seed), uint32_t(layer)};
}

// The second summand's data, or null.
const void* second(const Tensor& a, const std::optional<Tensor>& b, const BlockShape& shape) {
  if (!b) return nullptr;
  check("b", *b, a, a.scalar_type(), sizes_of(shape, 0));
  return b->const_data_ptr();
}

std::tuple<Tensor, Tensor> block_epilogue(const Tensor& a, const std::optional<Tensor>& b,
                                          const Tensor& slope_minus_one, const Tensor& noise,
                                          const std::optional<Tensor>& seed, int64_t layer, int64_t border) {
  const BlockShape shape = block_shape("a", a, slope_minus_one, 0, 1);
  check_border(border);
  const auto added = block_noise(noise, seed, layer, a, shape);
  const void* const b_data = second(a, b, shape);
  const OnDevice device(a);
  Tensor y = empty(a, sizes_of(shape, border), a.scalar_type());
  Tensor sign_mask = empty(a, sign_mask_sizes(shape), ScalarType::Byte);
  andfast::cuda::block_epilogue(element_type("a", a), a.const_data_ptr(), b_data, floats(slope_minus_one), added,
                                y.mutable_data_ptr(), sign_mask.mutable_data_ptr<uint8_t>(), shape, int(border),
                                device.stream);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {y, sign_mask};
}

std::tuple<Tensor, Tensor, Tensor> block_epilogue_grad(const Tensor& dy, const Tensor& y, const Tensor& sign_mask,
                                                       const Tensor& slope_minus_one, const Tensor& noise,
                                                       const std::optional<Tensor>& seed, int64_t layer,
                                                       int64_t border) {
  const BlockShape shape = block_shape("dy", dy, slope_minus_one, border, 1);
  check("y", y, dy, dy.scalar_type(), sizes_of(shape, border));
  check("sign_mask", sign_mask, dy, ScalarType::Byte, sign_mask_sizes(shape));
  const auto added = block_noise(noise, seed, layer, dy, shape);
  const OnDevice device(dy);
  Tensor dz = empty(dy, sizes_of(shape, 0), dy.scalar_type());
  Tensor dslope = torch::stable::empty_like(slope_minus_one), dnoise = torch::stable::empty_like(noise);
  Tensor scratch = empty(dy, {andfast::cuda::block_epilogue_grad_scratch(shape, seed.has_value())}, ScalarType::Float);
  andfast::cuda::block_epilogue_grad(element_type("dy", dy), dy.const_data_ptr(), y.const_data_ptr(), bytes(sign_mask),
                                     floats(slope_minus_one), added, dz.mutable_data_ptr(),
                                     dslope.mutable_data_ptr<float>(), dnoise.mutable_data_ptr<float>(),
                                     scratch.mutable_data_ptr<float>(), shape, int(border), device.stream);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {dz, dslope, dnoise};
}

// The noise added after the pooling, before it is multiplied by the strengths: the pooled map, or every image's pooled
// field.
Tensor pooled_noise(const Tensor& noise, const andfast::cuda::Noise& added, const BlockShape& shape, int64_t scale,
                    cudaStream_t stream) {
  const int count = added.seeds ? shape.images : shape.networks;
  Tensor field = noise;
  if (added.seeds) {
    field = empty(noise, {count, shape.height, shape.width}, ScalarType::Float);
    andfast::cuda::gaussian_field(added.seeds, added.layer, field.mutable_data_ptr<float>(), shape.networks,
                                  shape.images_per_network(), shape.pixels(), stream);
  }
  Tensor pooled = empty(noise, {count, shape.height / scale, shape.width / scale}, ScalarType::Float);
  andfast::cuda::blur_pool(Type::kFloat, floats(field), pooled.mutable_data_ptr(),
                           {1, count, shape.height, shape.width, 1}, int(scale), stream);
  return pooled;
}

std::tuple<Tensor, Tensor, Tensor> block_epilogue_pool(const Tensor& a, const std::optional<Tensor>& b,
                                                       const Tensor& slope_minus_one, const Tensor& noise,
                                                       const std::optional<Tensor>& seed, int64_t layer, int64_t scale,
                                                       int64_t border) {
  const BlockShape shape = block_shape("a", a, slope_minus_one, 0, 1);
  check_border(border);
  check_scale(shape, scale);
  const auto added = block_noise(noise, seed, layer, a, shape);
  const void* const b_data = second(a, b, shape);
  const OnDevice device(a);
  const BlockShape low = andfast::pooled(shape, scale);
  Tensor pooled = empty(a, sizes_of(low, border), a.scalar_type());
  Tensor negative = empty(a, sizes_of(low, 0), a.scalar_type());
  Tensor sign_mask = empty(a, sign_mask_sizes(shape), ScalarType::Byte);
  const Tensor field = pooled_noise(noise, added, shape, scale, device.stream);
  andfast::cuda::block_epilogue_pool(element_type("a", a), a.const_data_ptr(), b_data, floats(slope_minus_one),
                                     floats(field), seed ? added.values : nullptr, pooled.mutable_data_ptr(),
                                     negative.mutable_data_ptr(), sign_mask.mutable_data_ptr<uint8_t>(), shape,
                                     int(scale), int(border), device.stream);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {pooled, negative, sign_mask};
}

Tensor block_epilogue_pool_grad(const Tensor& dpooled, const Tensor& sign_mask, const Tensor& slope_minus_one,
                                int64_t scale) {
  const BlockShape shape = block_shape("dpooled", dpooled, slope_minus_one, 0, scale);
  check_scale(shape, scale);
  check("sign_mask", sign_mask, dpooled, ScalarType::Byte, sign_mask_sizes(shape));
  const OnDevice device(dpooled);
  Tensor dz = empty(dpooled, sizes_of(shape, 0), dpooled.scalar_type());
  andfast::cuda::block_epilogue_pool_grad(element_type("dpooled", dpooled), dpooled.const_data_ptr(), bytes(sign_mask),
                                          floats(slope_minus_one), dz.mutable_data_ptr(), shape, int(scale),
                                          device.stream);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return dz;
}

Tensor blur_pool(const Tensor& image, int64_t scale) {
  const BlockShape shape = block_shape("image", image, 1, 0, 1);
  check_scale(shape, scale);
  const OnDevice device(image);
  Tensor pooled = empty(image, sizes_of(andfast::pooled(shape, scale), 0), image.scalar_type());
  andfast::cuda::blur_pool(element_type("image", image), image.const_data_ptr(), pooled.mutable_data_ptr(), shape,
                           int(scale), device.stream);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return pooled;
}

Tensor blur_pool_grad(const Tensor& grad, int64_t scale) {
  const BlockShape shape = block_shape("grad", grad, 1, 0, scale);
  check_scale(shape, scale);
  const OnDevice device(grad);
  Tensor dimage = empty(grad, sizes_of(shape, 0), grad.scalar_type());
  andfast::cuda::blur_pool_grad(element_type("grad", grad), grad.const_data_ptr(), dimage.mutable_data_ptr(), shape,
                                int(scale), device.stream);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return dimage;
}

Tensor gaussian_field(const Tensor& seed, int64_t layer, int64_t images, int64_t height, int64_t width) {
  check("seed", seed, seed, ScalarType::Long, {-1});
  STD_TORCH_CHECK(images >= 0 && height >= 0 && width >= 0, "sizes must not be negative");
  const OnDevice device(seed);
  const int networks = as_int(seed.size(0));
  as_int(networks * int64_t{as_int(images)});
  Tensor field = empty(seed, {networks * images, height, width}, ScalarType::Float);
  andfast::cuda::gaussian_field(integers(seed), uint32_t(layer), field.mutable_data_ptr<float>(), networks, int(images),
                                as_int(as_int(height) * int64_t{as_int(width)}), device.stream);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return field;
}

Tensor projected_step(const Tensor& delta, const Tensor& grad, const Tensor& inv_scale, double step_size,
                      double epsilon) {
  check("delta", delta, delta, ScalarType::Float, {-1, -1});
  const int64_t rows = delta.size(0), columns = delta.size(1);
  check("grad", grad, delta, ScalarType::Float, {rows, columns});
  check("inv_scale", inv_scale, delta, ScalarType::Float, {columns});
  const OnDevice device(delta);
  Tensor out = torch::stable::empty_like(delta);
  Tensor scratch = empty(delta, {andfast::cuda::projected_step_scratch(rows, columns)}, ScalarType::Double);
  andfast::cuda::projected_step(floats(delta), floats(grad), floats(inv_scale), out.mutable_data_ptr<float>(),
                                scratch.mutable_data_ptr<double>(), rows, columns, step_size, epsilon, device.stream);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

Tensor identity_last(const std::vector<Tensor>& centres) {
  using andfast::cuda::kMostConvolutions, andfast::cuda::kMostInputs, andfast::cuda::kMostWidth;
  STD_TORCH_CHECK(!centres.empty() && centres.size() <= kMostConvolutions, "centres must hold 1 to ", kMostConvolutions,
                  " tensors, got ", centres.size());
  andfast::cuda::Centres taps;
  taps.count = int(centres.size());
  const Tensor& first = centres[0];
  check("centres[0]", first, first, ScalarType::Float, {-1, -1, -1});
  const int64_t networks = first.size(0);
  int64_t width = first.size(2);
  STD_TORCH_CHECK(width > 0 && width <= kMostInputs, "an image must have 1 to ", kMostInputs, " channels, got ", width);
  taps.widths[0] = int(width);
  for (int i = 0; i < taps.count; ++i) {
    check("centres", centres[i], first, ScalarType::Float, {networks, -1, width});
    width = centres[i].size(1);
    STD_TORCH_CHECK(width > 0 && width <= kMostWidth, "a convolution must have 1 to ", kMostWidth, " outputs, got ",
                    width);
    taps.taps[i] = floats(centres[i]);
    taps.widths[i + 1] = int(width);
  }
  const OnDevice device(first);
  Tensor inverse = empty(first, {networks, taps.widths[0], width}, ScalarType::Float);
  andfast::cuda::identity_last(taps, inverse.mutable_data_ptr<float>(), as_int(networks), device.stream);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return inverse;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(andfast, CUDA, m) {
  m.impl("projected_step", TORCH_BOX(&projected_step));
  m.impl("block_epilogue", TORCH_BOX(&block_epilogue));
  m.impl("block_epilogue_grad", TORCH_BOX(&block_epilogue_grad));
  m.impl("block_epilogue_pool", TORCH_BOX(&block_epilogue_pool));
  m.impl("block_epilogue_pool_grad", TORCH_BOX(&block_epilogue_pool_grad));
  m.impl("blur_pool", TORCH_BOX(&blur_pool));
  m.impl("blur_pool_grad", TORCH_BOX(&blur_pool_grad));
  m.impl("gaussian_field", TORCH_BOX(&gaussian_field));
  m.impl("identity_last", TORCH_BOX(&identity_last));
}

#else
#define ANDFAST_CUDA_ARCHS ""
#endif

// The architectures that the CUDA kernels were built for, in the format of TORCH_CUDA_ARCH_LIST; "" without CUDA.
extern "C" const char* andfast_cuda_archs() { return ANDFAST_CUDA_ARCHS; }
