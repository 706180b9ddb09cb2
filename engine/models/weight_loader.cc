#include "engine/models/weight_loader.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "absl/strings/str_cat.h"

namespace skein::engine {
namespace {

// One value as fp32.
float Load(const uint8_t* p, DType dtype) {
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, p, sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return dtype == DType::kBF16 ? BF16ToF32(bits) : F16ToF32(bits);
}

// Row-major copy in `to`; the source is contiguous.
void Convert(const uint8_t* source, DType from, int64_t n, DType to, uint8_t* out) {
  if (from == to) {
    std::memcpy(out, source, n * SizeOf(to));
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    const float value = Load(source + i * SizeOf(from), from);
    if (to == DType::kF32) {
      std::memcpy(out + i * 4, &value, 4);
    } else {
      const uint16_t bits = F32ToBF16(value);
      std::memcpy(out + i * 2, &bits, 2);
    }
  }
}

// The tensor's bytes, row-major: the mapping itself, or a copy in *storage when it is strided.
const uint8_t* Contiguous(const TensorView& tensor, std::unique_ptr<uint8_t[]>* storage) {
  if (tensor.contiguous()) return tensor.data;
  storage->reset(new uint8_t[tensor.elements() * SizeOf(tensor.dtype)]);
  tensor.CopyRaw(storage->get());
  return storage->get();
}

}  // namespace

const TensorView* WeightLoader::Find(const std::string& name) {
  if (!status_.ok()) return nullptr;
  const TensorView* tensor = checkpoint_.Find(name);
  if (tensor == nullptr) {
    status_ = absl::InvalidArgumentError(
        absl::StrCat(checkpoint_.path(), ": the tensor ", name, " is missing"));
  }
  return tensor;
}

// Small matrices share blocks, so that they lie in huge pages too; what a block has left over was
// never touched and takes no memory.
void* WeightLoader::Allocate(int64_t bytes, const std::string& name) {
  constexpr int64_t kBlock = int64_t{32} << 20;
  const int64_t rounded = (bytes + 63) / 64 * 64;
  if (rounded > free_bytes_) {
    kernels::Buffer buffer(device_, std::max(rounded, kBlock));
    if (!buffer) {
      status_ = absl::ResourceExhaustedError(
          absl::StrCat("no device memory for ", name, " of ", checkpoint_.path(), " (", bytes,
                       " bytes after ", bytes_, "); use a smaller model or bf16 weights"));
      return nullptr;
    }
    buffers_.push_back(std::move(buffer));
    free_ = buffers_.back().as<char>();
    free_bytes_ = static_cast<int64_t>(buffers_.back().bytes());
  }
  void* data = free_;
  free_ += rounded;
  free_bytes_ -= rounded;
  bytes_ += bytes;
  return data;
}

const float* WeightLoader::Vector(const std::string& name) {
  const TensorView* tensor = Find(name);
  if (tensor == nullptr) return nullptr;
  return Vectors({name}, static_cast<int32_t>(tensor->elements()));
}

const float* WeightLoader::Vectors(const std::vector<std::string>& names, int32_t C) {
  std::vector<float> host(names.size() * C);
  for (size_t i = 0; i < names.size(); ++i) {
    const TensorView* tensor = Find(names[i]);
    if (tensor == nullptr) return nullptr;
    tensor->CopyToF32(host.data() + i * C);
  }
  void* data = Allocate(host.size() * sizeof(float), names[0]);
  if (data == nullptr) return nullptr;
  device_.CopyToDevice(data, host.data(), host.size() * sizeof(float), stream_);
  stream_.Synchronize();
  return static_cast<const float*>(data);
}

kernels::PackedMatrix WeightLoader::Pack(const std::string& name, bool transposed, DType dtype) {
  const TensorView* tensor = Find(name);
  if (tensor == nullptr) return {};
  kernels::PackedMatrix matrix;
  matrix.O = static_cast<int32_t>(tensor->shape[transposed ? 1 : 0]);
  matrix.K = static_cast<int32_t>(tensor->shape[transposed ? 0 : 1]);
  matrix.dtype = dtype;
  void* data = Allocate(device_.ops().packed_bytes(matrix.O, matrix.K, dtype), name);
  if (data == nullptr) return {};
  std::unique_ptr<uint8_t[]> storage;
  kernels::PackParams params;
  params.source = Contiguous(*tensor, &storage);
  params.source_dtype = tensor->dtype;
  params.transposed = transposed;
  params.O = matrix.O;
  params.K = matrix.K;
  params.dtype = dtype;
  params.out = data;
  device_.ops().pack(params, stream_);
  stream_.Synchronize();
  matrix.data = data;
  return matrix;
}

const void* WeightLoader::Table(const std::string& name) {
  const TensorView* tensor = Find(name);
  if (tensor == nullptr) return nullptr;
  const int64_t row = tensor->shape.back();
  const int64_t rows = tensor->elements() / row;
  uint8_t* data = static_cast<uint8_t*>(Allocate(tensor->elements() * SizeOf(table_dtype()), name));
  if (data == nullptr) return nullptr;
  std::unique_ptr<uint8_t[]> storage;
  const uint8_t* source = Contiguous(*tensor, &storage);
  // A block of rows at a time: the conversion never holds a second copy of the table.
  const int64_t block = std::max<int64_t>(1, (int64_t{1} << 20) / row);
  std::vector<uint8_t> host(block * row * SizeOf(table_dtype()));
  for (int64_t first = 0; first < rows; first += block) {
    const int64_t n = std::min(block, rows - first) * row;
    Convert(source + first * row * SizeOf(tensor->dtype), tensor->dtype, n, table_dtype(),
            host.data());
    device_.CopyToDevice(data + first * row * SizeOf(table_dtype()), host.data(),
                         n * SizeOf(table_dtype()), stream_);
    stream_.Synchronize();
  }
  return data;
}

}  // namespace skein::engine
