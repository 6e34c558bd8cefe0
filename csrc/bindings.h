// Shared by the bindings of the CPU and of CUDA: argument checks and allocation of results.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <string>
#include <vector>

namespace andfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<int64_t>;

// Raises unless the tensor is contiguous, on `like`'s device, and of this type and shape; -1 means any size. The
// dispatcher guarantees that one of an operator's tensors is on the operator's device; this check guarantees it for
// all.
inline void check(const char* name, const Tensor& tensor, const Tensor& like, ScalarType type, const Sizes& sizes) {
  STD_TORCH_CHECK(tensor.device() == like.device(), name, " must be on the device of the other tensors");
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, " must be of type ", torch::headeronly::toString(type));
  bool fits = tensor.dim() == int64_t(sizes.size());
  std::string wanted;
  for (size_t i = 0; i < sizes.size(); ++i) {
    fits = fits && (sizes[i] == -1 || tensor.size(i) == sizes[i]);
    wanted += (i ? ", " : "") + (sizes[i] == -1 ? "any" : std::to_string(sizes[i]));
  }
  STD_TORCH_CHECK(fits, name, " must have the shape (", wanted, ")");
}

inline void check_border(int64_t border) {
  STD_TORCH_CHECK(border == 0 || border == 1, "border must be 0 or 1, got ", border);
}

// `Shape` is the BlockShape of the CPU's or of CUDA's kernels. Activations are (B, H, W, C) with a border of `border`
// pixels; their sign mask has one bit per channel.
template <typename Shape>
Sizes sizes_of(const Shape& shape, int64_t border) {
  return {shape.images, shape.height + 2 * border, shape.width + 2 * border, shape.channels};
}
template <typename Shape>
Sizes sign_mask_sizes(const Shape& shape) {
  return {shape.images, shape.height, shape.width, (shape.channels + 7) / 8};
}
template <typename Shape>
Shape pooled(Shape shape, int64_t scale) {
  shape.height /= scale, shape.width /= scale;
  return shape;
}

inline void check_networks(const char* name, int64_t networks, int64_t images) {
  STD_TORCH_CHECK(networks > 0 && images % networks == 0, name, " holds ", images,
                  " images, which is no multiple of the number of networks, ", networks);
}

template <typename Shape>
void check_scale(const Shape& shape, int64_t scale) {
  STD_TORCH_CHECK(scale >= 2 && shape.height % scale == 0 && shape.width % scale == 0,
                  "height and width must be multiples of scale, which must be at least 2");
}

inline Tensor empty(const Tensor& like, const Sizes& sizes, ScalarType type) {
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(sizes.data(), sizes.size()), type);
}

}  // namespace andfast
