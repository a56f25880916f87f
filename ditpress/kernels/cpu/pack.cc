// From the stored row-major codes to the panels of an instruction set.
#include <cstring>
#include <stdexcept>
#include <string>

#include "weight.h"

namespace ditpress {

Weight::Weight(const WeightSource& source, const Kernels& kernels)
    : kernels_(kernels), activation_(source.activation), n_(source.n), k_(source.k), groups_(source.groups) {
  if (n_ < 1 || k_ < 1) throw std::invalid_argument("weight is empty, expected N >= 1 and K >= 1");
  if (source.bits != 4 && source.bits != 8)
    throw std::invalid_argument("weight has " + std::to_string(source.bits) + " bits per code, expected 4 or 8");
  if (groups_ < 1 || k_ % groups_)
    throw std::invalid_argument(std::to_string(groups_) + " groups do not divide K=" + std::to_string(k_));
  group_ = k_ / groups_;
  if (activation_ == Activation::kInt8 && group_ > (1 << 17))
    throw std::invalid_argument("a group of " + std::to_string(group_) + " weights can overflow int32 sums");
  layout_ = kernels.layout(activation_, groups_ > 1);
  nibbles_ = source.bits == 4;
  padded_group_ = (group_ + kChunk - 1) / kChunk * kChunk;
  padded_k_ = groups_ * padded_group_;
  panel_count_ = (n_ + layout_.columns - 1) / layout_.columns;
  panel_bytes_ = padded_k_ * layout_.columns / (nibbles_ ? 2 : 1);
  for (int i = 0; nibbles_ && i < 16; ++i) table_[i] = static_cast<uint8_t>(source.codebook[i] + layout_.offset);
  pack_panels(source);
  pack_scale(source);
}

void Weight::pack_panels(const WeightSource& source) {
  panels_.reserve(panel_count_ * panel_bytes_);
  const int per_vector = layout_.vector_bytes / 4;  // columns of one vector
  const int64_t row_bytes = (k_ * source.bits + 7) / 8;
  // One row of bytes in padded order; 4-bit codes wait for their place as one code a byte.
  Buffer<uint8_t> row(padded_k_);
  for (int64_t n = 0; n < n_; ++n) {
    const uint8_t* codes = source.codes + n * row_bytes;
    uint8_t* bytes = row.data();
    for (int64_t g = 0, k = 0; g < groups_; ++g)
      for (int64_t i = 0; i < group_; ++i, ++k)
        bytes[g * padded_group_ + i] = nibbles_ ? static_cast<uint8_t>(codes[k / 2] >> (k % 2 * 4) & 15)
                                                : static_cast<uint8_t>(source.codebook[codes[k]] + layout_.offset);
    uint8_t* panel = panels_.data() + n / layout_.columns * panel_bytes_;
    const int column = static_cast<int>(n % layout_.columns), vector = column / per_vector;
    const int64_t quad_bytes = panel_bytes_ * 4 / padded_k_;
    // Where the four bytes of a quad of this column go: 8 bits, one place each; 4 bits, half of the bytes of the pair.
    const int64_t place = (nibbles_ ? vector / 2 : vector) * layout_.vector_bytes + column % per_vector * 4;
    const int shift = nibbles_ && vector % 2 ? 4 : 0;
    for (int64_t quad = 0; quad < padded_k_ / 4; ++quad) {
      uint32_t four, old;
      std::memcpy(&four, bytes + quad * 4, 4);
      uint8_t* to = panel + quad * quad_bytes + place;
      std::memcpy(&old, to, 4);
      old |= four << shift;
      std::memcpy(to, &old, 4);
    }
  }
}

void Weight::pack_scale(const WeightSource& source) {
  const int64_t count = panel_count_ * groups_ * layout_.columns;
  if (source.scale_is_half) scale_half_.reserve(count);
  else scale_.reserve(count);
  for (int64_t n = 0; n < n_; ++n)
    for (int64_t g = 0; g < groups_; ++g) {
      const int64_t from = n * groups_ + g;
      const int64_t to = (n / layout_.columns * groups_ + g) * layout_.columns + n % layout_.columns;
      if (source.scale_is_half) scale_half_.data()[to] = static_cast<const uint16_t*>(source.scale)[from];
      else scale_.data()[to] = static_cast<const float*>(source.scale)[from];
    }
}

}  // namespace ditpress
