// Launches kernels, and chooses them by element type.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "kernels.h"

namespace andfast::cuda {

constexpr int kThreads = 256;  // per block, at most

#ifdef __CUDACC__  // the tests run kernels on the host with their own `launch`
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t stream, Arguments... arguments) {
  kernel<<<grid, block, 0, stream>>>(arguments...);
}
#endif

template <typename T>
struct Element {
  using type = T;
};

// Calls function(Element<T>()) with the T of `type`.
template <typename Function>
void dispatch(Type type, const Function& function) {
  switch (type) {
    case Type::kFloat:
      return function(Element<float>());
    case Type::kHalf:
      return function(Element<__half>());
    case Type::kBFloat16:
      return function(Element<__nv_bfloat16>());
  }
}

}  // namespace andfast::cuda
