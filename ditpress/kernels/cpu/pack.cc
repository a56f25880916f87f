// From the stored row-major codes to the panels of an instruction set.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "half.h"
#include "weight.h"

namespace ditpress {
namespace {

int bits_of(int entries) {
  switch (entries) {
    case 2: return 1;
    case 4: return 2;
    case 16: return 4;
    case 64: return 6;
    case 256: return 8;
    default: return 0;
  }
}

// `count` codes of one stored row, one a byte.
void unpack_codes(const uint8_t* row, int64_t count, int entries, uint8_t* codes) {
  if (entries == 3) {
    for (int64_t i = 0; i < count; row += 1) {
      int byte = *row;
      for (int digit = 0; digit < 5 && i < count; ++digit, ++i, byte /= 3) codes[i] = static_cast<uint8_t>(byte % 3);
    }
    return;
  }
  const int bits = bits_of(entries), mask = entries - 1;
  if (bits == 8) {
    std::memcpy(codes, row, static_cast<size_t>(count));
    return;
  }
  uint32_t held = 0;  // little-endian bit stream
  int have = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (have < bits) {
      held |= static_cast<uint32_t>(*row++) << have;
      have += 8;
    }
    codes[i] = static_cast<uint8_t>(held & static_cast<uint32_t>(mask));
    held >>= bits;
    have -= bits;
  }
}

float scale_at(const WeightSource& source, int64_t index) {
  return source.scale_is_half ? half_to_float(static_cast<const uint16_t*>(source.scale)[index])
                              : static_cast<const float*>(source.scale)[index];
}

// The largest magnitude of `count` values.
int largest_value(const int8_t* values, int count) {
  int largest = 0;
  for (int i = 0; i < count; ++i) largest = std::max(largest, std::abs(static_cast<int>(values[i])));
  return largest;
}

}  // namespace

int64_t code_bytes(int64_t count, int entries) {
  if (entries == 3) return (count + 4) / 5;
  return (count * bits_of(entries) + 7) / 8;
}

Weight::Weight(const WeightSource& source, const Kernels& kernels)
    : kernels_(kernels), activation_(source.activation), n_(source.n), k_(source.k), groups_(source.groups) {
  if (n_ < 1 || k_ < 1) throw std::invalid_argument("weight is empty, expected N >= 1 and K >= 1");
  if (code_bytes(8, source.entries) == 0)
    throw std::invalid_argument("codebook has " + std::to_string(source.entries) +
                                " entries, expected 2, 3, 4, 16, 64 or 256");
  if (source.vector_length < 1 || k_ % source.vector_length)
    throw std::invalid_argument("codebook vectors of " + std::to_string(source.vector_length) +
                                " do not divide K=" + std::to_string(k_));
  if (groups_ < 1 || k_ % groups_)
    throw std::invalid_argument(std::to_string(groups_) + " groups do not divide K=" + std::to_string(k_));
  group_ = k_ / groups_;
  folded_ = activation_ == Activation::kInt8 && source.fold_scales && groups_ > 1;
  if (source.tables < 1 || (source.tables > 1 && (source.entries != 16 || source.vector_length != 1 || !source.table)))
    throw std::invalid_argument("codebook of " + std::to_string(source.tables) +
                                " tables, expected one, or more of 16 numbers and a table for every row");
  for (int64_t n = 0; source.tables > 1 && n < n_; ++n)
    if (source.table[n] >= source.tables)
      throw std::invalid_argument("table " + std::to_string(source.table[n]) + " of row " + std::to_string(n) +
                                  " is not in a codebook of " + std::to_string(source.tables));
  tables_ = source.tables;
  scale_is_half_ = source.scale_is_half && !folded_;
  compute_groups_ = folded_ ? 1 : groups_;
  if (k_ / compute_groups_ > (1 << 17))
    throw std::invalid_argument("a group of " + std::to_string(k_ / compute_groups_) +
                                " weights can overflow int32 sums");
  const int values = source.entries * source.vector_length;  // of a table
  layout_ = kernels.layout(grouped(), folded_ ? 128 : largest_value(source.codebook, source.tables * values));
  padded_group_ = (group_ + kChunk - 1) / kChunk * kChunk;
  padded_k_ = groups_ * padded_group_;
  choose_coding(source);
  panel_count_ = (n_ + layout_.columns - 1) / layout_.columns;
  group_bytes_ = coded_bytes(coding_, padded_group_ * layout_.columns / layout_.vector_bytes, layout_.vector_bytes);
  const auto lines = [](int64_t bytes) { return (bytes + 63) / 64 * 64; };
  fold_at_ = lines(groups_ * group_bytes_);
  select_at_ = fold_at_ + (folded_ ? lines(groups_ * layout_.columns * static_cast<int64_t>(sizeof(int16_t))) : 0);
  scale_at_ = select_at_ + (coding_ == Coding::kNibbles && tables_ > 1 ? kSelected : 0);
  panel_bytes_ = scale_at_ + lines(compute_groups_ * layout_.columns * (scale_is_half_ ? 2 : 4));
  panels_.reserve(panel_count_ * panel_bytes_);
  pack_scale(source);
  pack_table(source);
  pack_panels(source);
}

// The densest coding that the kernels decode; everything else is decoded now.
void Weight::choose_coding(const WeightSource& source) {
  const int d = source.vector_length;
  // A code must not reach from one group into the padding of the next.
  const bool whole = group_ % d == 0;
  const bool decoded = source.tables == 1 || (kernels_.decodes_tables && 16 * source.tables <= kTableBytes);
  if (source.entries == 16 && d == 1 && decoded) coding_ = Coding::kNibbles;
  if ((source.entries == 4 || source.entries == 2) && d == 1) coding_ = Coding::kPairs;
  if (source.entries == 3 && d == 1) coding_ = Coding::kTrits;
  if (source.entries == 256 && d == 4 && whole) coding_ = Coding::kVector8x4;
  if (source.entries == 64 && d == 2 && whole) coding_ = Coding::kVector6x2;
}

const int8_t* Weight::table_of(const WeightSource& source, int64_t n) const {
  return source.codebook + (tables_ > 1 ? source.table[n] : 0) * source.entries * source.vector_length;
}

void Weight::pack_table(const WeightSource& source) {
  const auto byte = [&](int64_t entry, int i) {
    return static_cast<uint8_t>(source.codebook[entry * source.vector_length + i] + layout_.offset);
  };
  switch (coding_) {
    case Coding::kBytes: break;
    case Coding::kNibbles:
    case Coding::kPairs:
      for (int i = 0; i < 16 * source.tables; ++i) table_[i] = byte(i % (source.entries * source.tables), 0);
      break;
    case Coding::kTrits:
      for (int digit = 0, power = 1; digit < 5; ++digit, power *= 3)
        for (int i = 0; i < 256; ++i) table_[digit * 256 + i] = byte(i / power % 3, 0);
      break;
    case Coding::kVector8x4:
    case Coding::kVector6x2:
      for (int plane = 0; plane < source.vector_length; ++plane)
        for (int i = 0; i < source.entries; ++i) table_[plane * source.entries + i] = byte(i, plane);
      break;
  }
}

// Folding multiplies the scales of the groups into 8-bit weights that share one scale per output:
//   s1 = max_g |scale_g| * max |codebook| / 127;  fold_g = rint(128 * scale_g / s1);
//   byte = floor((value * fold_g + 64) / 128), the rounding of vpmulhrsw
// after which the product is the one without groups.
void Weight::pack_scale(const WeightSource& source) {
  for (int64_t n = 0; n < n_; ++n) {
    const int64_t column = n % layout_.columns;
    uint8_t* const panel = panels_.data() + n / layout_.columns * panel_bytes_;
    float* const scales = reinterpret_cast<float*>(panel + scale_at_);
    if (folded_) {
      const int largest = largest_value(table_of(source, n), source.entries * source.vector_length);
      float top = 0.0f;
      for (int64_t g = 0; g < groups_; ++g) top = std::max(top, std::fabs(scale_at(source, n * groups_ + g)));
      const float s1 = top * static_cast<float>(largest) / 127.0f;
      scales[column] = s1;
      for (int64_t g = 0; g < groups_; ++g) {
        const float ratio = s1 > 0.0f ? 128.0f * scale_at(source, n * groups_ + g) / s1 : 0.0f;
        fold_of(panel)[g * layout_.columns + column] =
            static_cast<int16_t>(std::nearbyint(std::min(32767.0f, std::max(-32767.0f, ratio))));
      }
      continue;
    }
    for (int64_t g = 0; g < groups_; ++g) {
      const int64_t from = n * groups_ + g, to = g * layout_.columns + column;
      if (scale_is_half_) reinterpret_cast<uint16_t*>(scales)[to] = static_cast<const uint16_t*>(source.scale)[from];
      else scales[to] = scale_at(source, from);
    }
  }
}

void Weight::pack_panels(const WeightSource& source) {
  const int vector_bytes = layout_.vector_bytes, per_vector = vector_bytes / 4;  // columns of one vector
  const int vectors = layout_.columns / per_vector, d = source.vector_length;
  const int in = unit_in(coding_), out = unit_out(coding_);
  const bool vector_codes = coding_ == Coding::kVector8x4 || coding_ == Coding::kVector6x2;
  const int64_t row_bytes = code_bytes(k_ / d, source.entries), quads = padded_group_ / 4;
  uint32_t multiplier[8] = {1, 0, 0, 0, 0, 0, 0, 0};  // what moves a byte to its place in a unit
  for (int o = 1; o < out; ++o)
    multiplier[o] = multiplier[o - 1] * (coding_ == Coding::kTrits ? 3u : coding_ == Coding::kPairs ? 4u : 16u);
  Buffer<uint8_t> codes(k_ / d);
  Buffer<uint8_t> row(padded_k_ + 8);  // in padded order: bytes, or codes of one or more weights
  for (int64_t n = 0; n < n_; ++n) {
    unpack_codes(source.codes + n * row_bytes, k_ / d, source.entries, codes.data());
    uint8_t* const panel = panels_.data() + n / layout_.columns * panel_bytes_;
    const int column = static_cast<int>(n % layout_.columns), dword = column % per_vector;
    const int16_t* fold = folded_ ? fold_of(panel) : nullptr;
    const int8_t* const table = table_of(source, n);
    if (scale_at_ > select_at_)
      for (int at = column; at < kSelected; at += layout_.columns) panel[select_at_ + at] = source.table[n];
    for (int64_t g = 0; g < groups_; ++g) {
      const int64_t count = vector_codes ? group_ / d : group_;  // entries of this group in `row`
      for (int64_t i = 0; i < count; ++i) {
        const int64_t k = g * group_ + i;
        if (vector_codes) {
          row.data()[i] = codes.data()[g * count + i];
        } else if (coding_ != Coding::kBytes) {
          row.data()[i] = codes.data()[k];
        } else {
          int value = table[codes.data()[k / d] * d + k % d];
          if (fold) value = std::max(-128, std::min(127, (value * fold[g * layout_.columns + column] + 64) >> 7));
          row.data()[i] = static_cast<uint8_t>(value + layout_.offset);
        }
      }
      std::fill_n(row.data() + count, padded_group_ + 8 - count, uint8_t{0});
      uint8_t* const group = panel + g * group_bytes_;
      for (int64_t quad = 0; quad < quads; ++quad) {
        const int64_t vector = quad * vectors + column / per_vector;
        const int o = static_cast<int>(vector % out);
        uint8_t* const unit = group + vector / out * in * vector_bytes;
        if (coding_ == Coding::kVector8x4) {
          unit[dword / 4 * 16 + o * 4 + dword % 4] = row.data()[quad];
        } else if (coding_ == Coding::kVector6x2) {
          for (int i = 0; i < 2; ++i) {
            const int code = row.data()[quad * 2 + i];
            uint8_t* const at = unit + dword / 4 * 16 + o % 2 * 8 + dword % 4 * 2 + i;
            if (o / 2 < 3) at[o / 2 * vector_bytes] |= static_cast<uint8_t>(code);
            else for (int j = 0; j < 3; ++j) at[j * vector_bytes] |= static_cast<uint8_t>((code >> 2 * j & 3) << 6);
          }
        } else {
          uint32_t four, old;
          std::memcpy(&four, row.data() + quad * 4, 4);
          std::memcpy(&old, unit + dword * 4, 4);
          old += four * multiplier[o];
          std::memcpy(unit + dword * 4, &old, 4);
        }
      }
    }
  }
}

}  // namespace ditpress
