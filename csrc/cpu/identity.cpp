// The last convolution of an identity network: the pseudoinverse of the product of all others, in doubles.
#include <utility>
#include <vector>

#include "../math.h"
#include "kernels.h"

namespace andfast::cpu {

void identity_last(const std::vector<const float*>& taps, const std::vector<int64_t>& widths, float* inverse,
                   int64_t networks, ParallelFor parallel_for) {
  const int64_t inputs = widths[0], outputs = widths.back();
  parallel_for(networks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t network = begin; network < end; ++network) {
      std::vector<double> product(inputs * inputs), next;  // begins as the identity
      for (int64_t i = 0; i < inputs; ++i) product[i * inputs + i] = 1;
      for (size_t layer = 0; layer < taps.size(); ++layer) {
        const int64_t from = widths[layer], to = widths[layer + 1];
        const float* tap = taps[layer] + network * to * from;
        next.assign(to * inputs, 0);
        for (int64_t row = 0; row < to; ++row) {
          for (int64_t k = 0; k < from; ++k, ++tap) {
            for (int64_t j = 0; j < inputs; ++j) next[row * inputs + j] += double(*tap) * product[k * inputs + j];
          }
        }
        std::swap(product, next);
      }

      std::vector<double> gram(inputs * inputs);  // M^T M
      for (int64_t k = 0; k < outputs; ++k) {
        const double* row = &product[k * inputs];
        for (int64_t i = 0; i < inputs * inputs; ++i) gram[i] += row[i / inputs] * row[i % inputs];
      }
      invert(gram.data(), int(inputs));
      float* out = inverse + network * inputs * outputs;
      for (int64_t i = 0; i < inputs; ++i) {
        for (int64_t k = 0; k < outputs; ++k) {
          double sum = 0;
          for (int64_t j = 0; j < inputs; ++j) sum += gram[i * inputs + j] * product[k * inputs + j];
          out[i * outputs + k] = float(sum);
        }
      }
    }
  });
}

}  // namespace andfast::cpu
