// The CPU kernels. None knows torch: they take plain pointers to contiguous memory, and a way to run in parallel.
#pragma once

#include <cstdint>
#include <functional>

// Compiles a function for several instruction sets and picks one when the library loads, so that one wheel is fast
// on old and new x86 processors. It needs the ifunc mechanism of glibc; elsewhere the baseline is used.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__has_attribute)
#if __has_attribute(target_clones)
#define ANDFAST_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#endif
#ifndef ANDFAST_CLONES
#define ANDFAST_CLONES
#endif

namespace andfast::cpu {

// Calls task(begin, end) for parts that make up [0, count), each of `grain` or more where possible, at the same
// time or not, and returns when all are done. Tasks do not throw.
using Task = std::function<void(int64_t begin, int64_t end)>;
using ParallelFor = void (*)(int64_t count, int64_t grain, const Task& task);

// See projected_step in andfast/ops/projected_step.py. delta, grad, out: (rows, columns); inv_scale: (columns);
// out overlaps no input. Results do not depend on how parallel_for splits the work.
void projected_step(const float* delta, const float* grad, const float* inv_scale, float* out, int64_t rows,
                    int64_t columns, double step_size, double epsilon, ParallelFor parallel_for);

}  // namespace andfast::cpu
