// A tensor inside a mapped file: copies out of it, whatever its type, strides and alignment.

#include <algorithm>
#include <cstring>
#include <limits>

#include "absl/strings/str_join.h"
#include "engine/checkpoint.h"
#include "engine/checkpoint/bytes.h"
#include "engine/checkpoint/float_bits.h"
#include "engine/checkpoint/parsed_checkpoint.h"

namespace skein::engine {
namespace {

// Calls row(source, n, stride) for each run along the last dimension, in row-major order.
template <typename Row>
void ForEachRow(const TensorView& tensor, Row row) {
  const int64_t total = tensor.elements();
  if (total == 0) return;
  const size_t rank = tensor.shape.size();
  if (rank == 0 || tensor.contiguous()) {
    row(tensor.data, total, int64_t{1});
    return;
  }
  const int64_t item = SizeOf(tensor.dtype);
  const int64_t length = tensor.shape[rank - 1];
  std::vector<int64_t> index(rank, 0);
  for (int64_t done = 0; done < total; done += length) {
    int64_t offset = 0;
    for (size_t d = 0; d + 1 < rank; ++d) offset += index[d] * tensor.strides[d];
    row(tensor.data + offset * item, length, tensor.strides[rank - 1]);
    for (size_t d = rank - 1; d-- > 0;) {
      if (++index[d] < tensor.shape[d]) break;
      index[d] = 0;
    }
  }
}

template <typename Bits, typename Convert>
void ConvertRow(const uint8_t* source, int64_t n, int64_t stride, float* out, Convert convert) {
  const auto load = [source](int64_t i) {
    Bits bits;
    std::memcpy(&bits, source + i * int64_t{sizeof(Bits)}, sizeof(Bits));  // may be unaligned
    return bits;
  };
  if (stride == 1) {  // a loop of its own, for the compiler to vectorise
    for (int64_t i = 0; i < n; ++i) out[i] = convert(load(i));
  } else {
    for (int64_t i = 0; i < n; ++i) out[i] = convert(load(i * stride));
  }
}

}  // namespace

int64_t TensorView::elements() const {
  int64_t n = 1;
  for (int64_t size : shape) n *= size;  // the parser has checked that it fits
  return n;
}

bool TensorView::contiguous() const {
  int64_t expected = 1;
  for (size_t d = shape.size(); d-- > 0;) {
    if (shape[d] == 0) return true;
    if (shape[d] != 1 && strides[d] != expected) return false;
    expected *= shape[d];
  }
  return true;
}

TensorView TensorView::Rows(int64_t first, int64_t last) const {
  TensorView rows = *this;
  rows.shape[0] = last - first;
  rows.data = data + first * strides[0] * SizeOf(dtype);
  return rows;
}

void TensorView::CopyToF32(float* out) const {
  ForEachRow(*this, [&](const uint8_t* source, int64_t n, int64_t stride) {
    switch (dtype) {
      case DType::kF32:
        ConvertRow<float>(source, n, stride, out, [](float value) { return value; });
        break;
      case DType::kBF16:
        ConvertRow<uint16_t>(source, n, stride, out, [](uint16_t bits) { return WidenBF16(bits); });
        break;
      case DType::kF16:
        ConvertRow<uint16_t>(source, n, stride, out, [](uint16_t bits) { return WidenF16(bits); });
        break;
      case DType::kI8:  // no file has them
      case DType::kI8A8:
        break;
    }
    out += n;
  });
}

void TensorView::CopyRaw(void* out) const {
  auto* target = static_cast<uint8_t*>(out);
  const int64_t item = SizeOf(dtype);
  ForEachRow(*this, [&](const uint8_t* source, int64_t n, int64_t stride) {
    if (stride == 1) {
      std::memcpy(target, source, n * item);
    } else {
      for (int64_t i = 0; i < n; ++i) {
        std::memcpy(target + i * item, source + i * stride * item, item);
      }
    }
    target += n * item;
  });
}

absl::Status CheckShape(const std::string& name, const std::vector<int64_t>& shape, DType dtype,
                        uint64_t* bytes) {
  if (shape.size() > kMaxDimensions) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", Quoted(name), " has ", shape.size(),
                                                   " dimensions; at most ", kMaxDimensions,
                                                   " are supported"));
  }
  uint64_t product = SizeOf(dtype);
  bool fits = true, empty = false;
  for (int64_t size : shape) {
    if (size < 0) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", Quoted(name),
                                                     " has a negative size in its shape [",
                                                     absl::StrJoin(shape, ", "), "]"));
    }
    empty = empty || size == 0;
    // Zeros are left out, so that [0, 2^63 - 1, 2^63 - 1] is refused like any other.
    if (size > 0) fits = fits && CheckedMul(product, size, &product);
  }
  if (!fits || product > uint64_t{std::numeric_limits<int64_t>::max()}) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tensor ", Quoted(name), " has an impossible shape [", absl::StrJoin(shape, ", "), "]"));
  }
  *bytes = empty ? 0 : product;
  return absl::OkStatus();
}

std::vector<int64_t> RowMajorStrides(const std::vector<int64_t>& shape) {
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t d = shape.size(); d-- > 1;) {
    strides[d - 1] = strides[d] * std::max<int64_t>(shape[d], 1);
  }
  return strides;
}

}  // namespace skein::engine
