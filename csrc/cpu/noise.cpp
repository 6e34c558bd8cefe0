#include <algorithm>

#include "../math.h"
#include "kernels.h"

namespace andfast::cpu {

void gaussian_field(const int64_t* seeds, float* field, int64_t networks, int64_t images, int64_t pixels, int64_t layer,
                    ParallelFor parallel_for) {
  const int64_t quads = (pixels + 3) / 4;
  parallel_for(networks * images * quads, 256, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / quads, quad = i % quads;
      float four[4];
      gaussian_quad(uint64_t(seeds[image / images]), uint32_t(layer), uint32_t(image % images), uint32_t(quad), four);
      std::copy(four, four + std::min<int64_t>(4, pixels - 4 * quad), field + image * pixels + 4 * quad);
    }
  });
}

}  // namespace andfast::cpu
