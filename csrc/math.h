// Per-element mathematics, written once for the CPU and for CUDA. No torch here.
#pragma once

#ifdef __CUDACC__
#define ANDFAST_INLINE __host__ __device__ __forceinline__
#else
#define ANDFAST_INLINE inline
#endif

namespace andfast {

// The adversary's projected step on one row: delta d, gradient g, inverse scale factors r (0: the coordinate is
// fixed at 0). Three sums over the row decide the whole step, so one pass over d and g finds them and a second
// writes the result. Doubles hold the square of any float32 product or quotient: nothing over- or underflows.
struct StepSums {
  double grad = 0;   // sum of (r g)^2
  double delta = 0;  // sum of (d / r)^2 over r > 0
  double dot = 0;    // sum of d g       over r > 0, which is <d / r, r g>
};

// Adds one element. The quotient and products are formed for r = 0 too and then not chosen: a select, unlike a
// branch, goes into vector code.
ANDFAST_INLINE void add_element(double d, double g, double r, double& grad, double& delta, double& dot) {
  const double scaled_grad = r * g;
  const double scaled_delta = d / r;
  const double product = d * g;
  grad += scaled_grad * scaled_grad;  // counted at r = 0 too, where a NaN must still spoil the row's gradient
  delta += r > 0 ? scaled_delta * scaled_delta : 0.0;
  dot += r > 0 ? product : 0.0;
}

// One element of (d + rate r^2 g) shrink. A rate of 0 leaves g unread, be it NaN.
ANDFAST_INLINE float step_element(double d, double g, double r, double rate, double shrink) {
  const double move = rate * r * r * g;
  const double moved = d + (rate > 0 ? move : 0.0);
  const double result = moved * shrink;
  return static_cast<float>(r > 0 ? result : 0.0);
}

}  // namespace andfast
