// Rows of pixels, as the CPU kernels work on them: in float32 for every storage type. Everything here is inlined into
// clones for several instruction sets (ANDFAST_CLONES), and written so that loops over channels are vectorised.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "../math.h"
#include "kernels.h"

namespace andfast::cpu {

ANDFAST_BODY float load(float value) { return value; }
ANDFAST_BODY float load(bfloat16 value) {
  const uint32_t bits = uint32_t{value.bits} << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

ANDFAST_BODY void store(float& to, float value) { to = value; }
ANDFAST_BODY void store(bfloat16& to, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);  // to nearest, ties to even
  const bool nan = (bits & 0x7fffffff) > 0x7f800000;          // rounding could turn it into an infinity
  to.bits = uint16_t((nan ? bits | 0x400000 : rounded) >> 16);
}

// Converts eight bytes of 0 or 1 to the bits of one byte, and back, without a loop.
ANDFAST_BODY uint8_t pack_bits(const uint8_t* bytes) {
  uint64_t word;
  std::memcpy(&word, bytes, 8);
  return uint8_t(word * 0x0102040810204080u >> 56);
}
ANDFAST_BODY void unpack_bits(uint8_t bits, uint8_t* bytes) {
  // A copy of the byte for each bit; the mask leaves bit i of copy i, and the sum carries it into the top bit.
  const uint64_t copies = (bits * 0x0101010101010101u) & 0x8040201008040201u;
  const uint64_t word = (copies + 0x00406070787c7e7fu) >> 7 & 0x0101010101010101u;
  std::memcpy(bytes, &word, 8);
}

// Unpacks the bits of a row of pixels. Done before the row is processed, not pixel by pixel: a vector load would stall
// on the narrower stores just before it.
ANDFAST_BODY void unpack_row(const uint8_t* sign_mask, uint8_t* bytes, int64_t count) {
  for (int64_t i = 0; i < count; ++i) unpack_bits(sign_mask[i], bytes + 8 * i);
}

constexpr int64_t sign_bytes(int64_t channels) { return (channels + 7) / 8; }

// LeakyReLU of a pixel, and a bit per channel where the slope applies; y may be z. `bytes` is scratch, 8 for each byte
// of the sign mask, zero past the channels; `sign_mask` may be null.
template <typename T>
ANDFAST_BODY void leaky_relu_body(const T* z, const float* slope, T* y, uint8_t* sign_mask, uint8_t* bytes,
                                  int64_t channels) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    const float value = load(z[c]);
    bytes[c] = !(value > 0);  // at zero as PyTorch does
    // Two selects between values: one select between products would not be vectorised.
    store(y[c], (value > 0 ? value : 0.0f) + slope[c] * (value > 0 ? 0.0f : value));
  }
  if (sign_mask) {
    for (int64_t i = 0; i < sign_bytes(channels); ++i) sign_mask[i] = pack_bits(bytes + 8 * i);
  }
}

// Its backward pass; dz may be dy.
template <typename T>
ANDFAST_BODY void leaky_relu_backward_body(const T* dy, const float* slope, const uint8_t* sign_mask, T* dz,
                                           uint8_t* bytes, int64_t channels) {
  unpack_row(sign_mask, bytes, sign_bytes(channels));
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    const float counts = bytes[c];  // a select by bytes would not be vectorised
    store(dz[c], load(dy[c]) * (counts > 0 ? slope[c] : 1.0f));
  }
}

// Fills the border left and right of a row, and above or below it where the row is the image's first or last.
// `row` is the start of the bordered row h.
template <typename T>
void replicate_row(T* row, int64_t h, int64_t height, int64_t width, int64_t channels) {
  const int64_t bordered = (width + 2) * channels;
  std::copy(row + channels, row + 2 * channels, row);
  std::copy(row + width * channels, row + (width + 1) * channels, row + (width + 1) * channels);
  if (h == 0) std::copy(row, row + bordered, row - bordered);
  if (h == height - 1) std::copy(row, row + bordered, row + bordered);
}

// The noise that a block adds, one row of an image at a time.
class NoiseRows {
 public:
  NoiseRows(Noise noise, BlockShape shape)
      : noise_(noise),
        shape_(shape),
        ones_(noise.seeds ? 0 : shape.channels, 1.0f),
        field_(noise.seeds ? shape.width + 8 : 0) {}

  // Sets `network`, and the two vectors whose outer product is added to row h of the image.
  void seek(int64_t image, int64_t h) {
    const int64_t group = shape_.images / shape_.networks;
    network = image / group;
    if (!noise_.seeds) {
      strength = ones_.data();
      noise = noise_.values + (network * shape_.height + h) * shape_.width;
      return;
    }
    const int64_t first = h * shape_.width / 4, last = ((h + 1) * shape_.width + 3) / 4;
    for (int64_t quad = first; quad < last; ++quad) {
      gaussian_quad(uint64_t(noise_.seeds[network]), uint32_t(noise_.layer), uint32_t(image % group), uint32_t(quad),
                    &field_[(quad - first) * 4]);
    }
    strength = noise_.values + network * shape_.channels;
    noise = field_.data() + (h * shape_.width - first * 4);
  }

  int64_t network = 0;
  const float* strength = nullptr;  // (channels)
  const float* noise = nullptr;     // (width)

 private:
  Noise noise_;
  BlockShape shape_;
  std::vector<float> ones_, field_;
};

}  // namespace andfast::cpu
