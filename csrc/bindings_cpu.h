// Shared by the bindings of the CPU's operators.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "bindings.h"
#include "cpu/kernels.h"

namespace andfast {

inline void parallel_for(int64_t count, int64_t grain, const andfast::cpu::Task& task) {
  torch::stable::parallel_for(0, count, grain, task);
}

// Calls f with a null pointer of the tensor's element type.
template <typename F>
void by_type(const char* name, const Tensor& tensor, F f) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return f(static_cast<float*>(nullptr));
    case ScalarType::BFloat16:
      return f(static_cast<cpu::bfloat16*>(nullptr));
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

}  // namespace andfast
