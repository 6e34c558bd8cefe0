// The only file that knows torch, through its stable ABI: schemas, checks and registration. Built against one torch
// release, it loads in later ones. The checks guard the kernels' memory; andfast/ops gives the friendly errors.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "cpu/kernels.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void parallel_for(int64_t count, int64_t grain, const andfast::cpu::Task& task) {
  torch::stable::parallel_for(0, count, grain, task);
}

void check_input(const char* name, const Tensor& tensor, int64_t dimensions) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.scalar_type() == ScalarType::Float && tensor.is_contiguous() &&
                      tensor.dim() == dimensions,
                  name, " must be a contiguous float32 CPU tensor of ", dimensions, " dimension(s)");
}

Tensor projected_step(const Tensor& delta, const Tensor& grad, const Tensor& inv_scale, double step_size,
                      double epsilon) {
  check_input("delta", delta, 2);
  check_input("grad", grad, 2);
  check_input("inv_scale", inv_scale, 1);
  const int64_t rows = delta.size(0), columns = delta.size(1);
  STD_TORCH_CHECK(grad.size(0) == rows && grad.size(1) == columns, "grad must have the shape of delta");
  STD_TORCH_CHECK(inv_scale.size(0) == columns, "inv_scale must have one element a column of delta");
  Tensor out = torch::stable::empty_like(delta);
  andfast::cpu::projected_step(delta.const_data_ptr<float>(), grad.const_data_ptr<float>(),
                               inv_scale.const_data_ptr<float>(), out.mutable_data_ptr<float>(), rows, columns,
                               step_size, epsilon, parallel_for);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY(andfast, m) {
  m.def(
      "projected_step(Tensor delta, Tensor grad, Tensor inv_scale, float step_size, float epsilon) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(andfast, CPU, m) {
  m.impl("projected_step", TORCH_BOX(&projected_step));
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
