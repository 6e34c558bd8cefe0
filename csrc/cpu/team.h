// Loops by threads that spin for a short time while they wait, and then sleep. OpenMP's either spin for milliseconds
// after every loop, which takes the processor from whoever shares it, or sleep at once: waking them takes as long as a
// small convolution.
#pragma once

#include "kernels.h"

namespace andfast::cpu {

// A `ParallelFor` by at most `threads` threads, the caller among them. Returns false, and has done nothing, where
// another loop is running.
bool run_in_team(int64_t count, int64_t grain, int64_t threads, const Task& task);

}  // namespace andfast::cpu
