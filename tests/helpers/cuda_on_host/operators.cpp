// csrc/bindings_cuda.cpp and csrc/cuda as operators of the library andfast_on_host, for tensors on the CPU.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

// The parts of torch that a CPU build does not have or that would look for a GPU.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) { return *stream = nullptr, 0; }
extern "C" AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  return *guard = nullptr, 0;
}
extern "C" AOTITorchError torch_c10_cuda_check_msg(int32_t, const char*, const char*, uint32_t, bool, char** message) {
  return *message = nullptr, 0;
}
extern "C" void torch_c10_cuda_free_error_msg(char*) {}

#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(library, device, m) _STABLE_TORCH_LIBRARY_IMPL(andfast_on_host, CPU, m, C10_UID)

#include "bindings_cuda.cpp"
