// Stands in for CUDA's own header, so that csrc/cuda runs on the host, compiled as plain C++, for tests of its logic
// where there is no GPU. The threads of a block take turns, each until it waits for others: a run is as good as any
// that a GPU might make, but for what only real concurrency shows. A barrier that not all threads reach is found.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define __global__
#define __host__
#define __device__
#define __forceinline__ inline
#define __restrict__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one after the other; what the last one left there is as good as garbage

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

using cudaStream_t = void*;
using cudaError_t = int;
inline cudaError_t cudaGetLastError() { return 0; }
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  return std::memset(to, value, bytes), 0;
}

using std::min;

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

// A 16-byte access faults on the GPU where it is not aligned, and so it does here.
template <typename T>
T __ldg(const T* from) {
  if (reinterpret_cast<uintptr_t>(from) % sizeof(T)) std::fprintf(stderr, "misaligned access\n"), std::abort();
  return *from;
}

namespace on_host {

enum class State { kReady, kAtWarp, kAtBlock, kDone };

struct Thread {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(1 << 16);
  State state;
};

inline std::vector<Thread> threads(1024);
inline ucontext_t scheduler;
inline unsigned current;
inline std::function<void()> body;
inline char exchange[1024][16];

inline void wait(State state) {
  threads[current].state = state;
  swapcontext(&threads[current].context, &scheduler);
}

inline void enter() {
  body();
  threads[current].state = State::kDone;  // and on to uc_link, the scheduler
}

// Lets the threads [begin, end) go on if all of them wait in this state.
inline bool release(unsigned begin, unsigned end, State state) {
  for (unsigned i = begin; i < end; ++i) {
    if (threads[i].state != state) return false;
  }
  for (unsigned i = begin; i < end; ++i) threads[i].state = State::kReady;
  return true;
}

inline void run_block(unsigned count) {
  for (unsigned i = 0; i < count; ++i) {
    Thread& thread = threads[i];
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.data();
    thread.context.uc_stack.ss_size = thread.stack.size();
    thread.context.uc_link = &scheduler;
    makecontext(&thread.context, enter, 0);
    thread.state = State::kReady;
  }
  for (unsigned done = 0; done < count;) {
    bool moved = false;
    for (current = 0; current < count; ++current) {
      if (threads[current].state != State::kReady) continue;
      threadIdx = {current % blockDim.x, current / blockDim.x % blockDim.y, current / (blockDim.x * blockDim.y)};
      swapcontext(&scheduler, &threads[current].context);
      moved = true;
      done += threads[current].state == State::kDone;
    }
    for (unsigned i = 0; i < count; i += 32) moved |= release(i, std::min(i + 32, count), State::kAtWarp);
    moved |= release(0, count, State::kAtBlock);
    if (!moved) std::fprintf(stderr, "some threads wait for others that are elsewhere\n"), std::abort();
  }
}

}  // namespace on_host

inline void __syncthreads() { on_host::wait(on_host::State::kAtBlock); }

// For whole warps only.
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  if (mask != 0xffffffffu) std::abort();
  const unsigned self = on_host::current;
  std::memcpy(on_host::exchange[self], &value, sizeof(T));
  on_host::wait(on_host::State::kAtWarp);
  T other;
  std::memcpy(&other, on_host::exchange[self ^ unsigned(lanes)], sizeof(T));
  on_host::wait(on_host::State::kAtWarp);
  return other;
}

namespace andfast::cuda {

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t, Arguments... arguments) {
  if (block.x * block.y * block.z > 1024 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.x * grid.y == 0) {
    std::fprintf(stderr, "a launch of %u x %u blocks\n", grid.x, grid.y), std::abort();
  }
  gridDim = grid, blockDim = block;
  on_host::body = [&] { kernel(arguments...); };
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) {
      blockIdx = {x, y};
      on_host::run_block(block.x * block.y * block.z);
    }
  }
}

}  // namespace andfast::cuda
