// The gradients of the weights of 3x3 convolutions that read the same images.
#pragma once

#include <vector>

#include "tiles.h"

namespace andfast::cpu {

// One of the convolutions: it reads the first `inputs` channels, `dz` is the gradient of its results; its weights'
// gradient, times `factor`, goes to `grad`.
struct GradOf {
  Channels dz;
  int64_t inputs;
  float factor;
  float* grad;
  WeightSteps steps;
};

// The layout of the images: image b belongs to network b / (images / networks); height and width of what is read.
struct GradFrame {
  int64_t networks, images, height, width, padding;
};

// `x`: the channels that are read, in this order.
void weight_grad(const std::vector<Channels>& x, const std::vector<GradOf>& convs, GradFrame frame,
                 ParallelFor parallel_for);

}  // namespace andfast::cpu
