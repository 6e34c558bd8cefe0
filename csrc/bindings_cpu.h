// Shared by the bindings of the CPU's operators.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdlib>
#include <string>

#include "bindings.h"
#include "cpu/kernels.h"
#include "cpu/team.h"

namespace andfast {

// PyTorch's own loops spin while they wait, unless OpenMP is told that threads sleep (andfast/utils/openmp.py); ours
// would then stand in their way, and they in ours.
inline void parallel_for(int64_t count, int64_t grain, const cpu::Task& task) {
  static const bool others_sleep = [] {
    const char* policy = std::getenv("OMP_WAIT_POLICY");
    return policy && std::string(policy) == "passive";
  }();
  if (others_sleep && cpu::run_in_team(count, grain, torch::stable::get_num_threads(), task)) return;
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
