#include "engine/models/weight_loader.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/base/parallel.h"

namespace skein::engine {
namespace {

// Of the checkpoint, mapped and worked on at a time.
constexpr int64_t kPieceBytes = int64_t{16} << 20;

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

void Convert(const uint8_t* source, DType from, int64_t n, DType to, uint8_t* out) {
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

int64_t RowBytes(const TensorView& tensor) {
  return tensor.elements() / tensor.shape[0] * SizeOf(tensor.dtype);
}

// What this tier's packing makes of a small matrix: changes with the layout, so nobody has to
// remember to count a version up.
uint64_t ProbePacking(kernels::Device& device, DType dtype, bool transposed) {
  constexpr int32_t kO = 150, kK = 330;  // no multiple of any panel, step or group
  std::vector<float> source(int64_t{kO} * kK);
  for (size_t i = 0; i < source.size(); ++i) {
    source[i] = static_cast<float>(static_cast<int32_t>(i * 2654435761u)) * 0x1p-31f;
  }
  const int64_t bytes = device.ops().packed_bytes(kO, kK, dtype);
  const kernels::Buffer packed(device, bytes);
  if (!packed) return 0;
  const auto stream = device.NewStream();
  device.Zero(packed.data(), bytes, *stream);
  kernels::PackParams params;
  params.source = source.data();
  params.transposed = transposed;
  params.O = kO;
  params.K = kK;
  params.dtype = dtype;
  params.out = packed.data();
  device.ops().pack(params, *stream);
  std::vector<char> host(bytes);
  device.CopyToHost(host.data(), packed.data(), bytes, *stream);
  stream->Synchronize();
  return base::Hash64(host.data(), host.size());
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
char* WeightLoader::Allocate(int64_t bytes, const std::string& name) {
  constexpr int64_t kBlock = int64_t{32} << 20;
  const int64_t rounded = (bytes + 63) / 64 * 64;
  if (buffers_.empty() || rounded > static_cast<int64_t>(buffers_.back().bytes()) - used_.back()) {
    kernels::Buffer buffer(device_, std::max(rounded, kBlock));
    if (!buffer) {
      status_ = absl::ResourceExhaustedError(
          absl::StrCat("no device memory for ", name, " of ", checkpoint_.path(), " (", bytes,
                       " bytes after ", bytes_, "); use a smaller model or bf16 weights"));
      return nullptr;
    }
    buffers_.push_back(std::move(buffer));
    used_.push_back(0);
  }
  char* data = buffers_.back().as<char>() + used_.back();
  used_.back() += rounded;
  bytes_ += bytes;
  return data;
}

char* WeightLoader::Add(Kind kind, std::vector<const TensorView*> tensors, DType dtype,
                        int64_t bytes) {
  char* data = Allocate(bytes, tensors[0]->name);
  if (data != nullptr) weights_.push_back({kind, std::move(tensors), dtype, data, bytes});
  return data;
}

const float* WeightLoader::Vector(const std::string& name) {
  const TensorView* tensor = Find(name);
  if (tensor == nullptr) return nullptr;
  return Vectors({name}, static_cast<int32_t>(tensor->elements()));
}

const float* WeightLoader::Vectors(const std::vector<std::string>& names, int32_t C) {
  std::vector<const TensorView*> tensors;
  for (const std::string& name : names) {
    tensors.push_back(Find(name));
    if (tensors.back() == nullptr) return nullptr;
  }
  const int64_t bytes = std::ssize(names) * C * SizeOf(DType::kF32);
  return reinterpret_cast<const float*>(
      Add(Kind::kVectors, std::move(tensors), DType::kF32, bytes));
}

kernels::PackedMatrix WeightLoader::Pack(const std::string& name, bool transposed, DType dtype) {
  const TensorView* tensor = Find(name);
  if (tensor == nullptr) return {};
  kernels::PackedMatrix matrix;
  matrix.O = static_cast<int32_t>(tensor->shape[transposed ? 1 : 0]);
  matrix.K = static_cast<int32_t>(tensor->shape[transposed ? 0 : 1]);
  matrix.dtype = dtype;
  matrix.data = Add(transposed ? Kind::kMatrixTransposed : Kind::kMatrix, {tensor}, dtype,
                    device_.ops().packed_bytes(matrix.O, matrix.K, dtype));
  return matrix;
}

const void* WeightLoader::Table(const std::string& name) {
  const TensorView* tensor = Find(name);
  if (tensor == nullptr) return nullptr;
  return Add(Kind::kTable, {tensor}, table_dtype(), tensor->elements() * SizeOf(table_dtype()));
}

absl::Status WeightLoader::Fill() {
  SKEIN_RETURN_IF_ERROR(status_);
  if (options_.packed == nullptr) return MakeAll();
  const PackedImage image = Image();
  const absl::Status read = options_.packed->Read(image, device_, options_);
  if (read.ok() || absl::IsCancelled(read)) return read;
  SKEIN_RETURN_IF_ERROR(MakeAll());
  const absl::Status written = options_.packed->Write(image, device_, options_);
  return absl::IsCancelled(written) ? written : absl::OkStatus();
}

PackedImage WeightLoader::Image() const {
  PackedImage image;
  image.layout = Layout();
  for (size_t i = 0; i < buffers_.size(); ++i) {
    image.parts.emplace_back(buffers_[i].as<char>(), used_[i]);
  }
  return image;
}

uint64_t WeightLoader::Layout() const {
  std::string all = absl::StrCat("tier ", device_.info().tier, "\n");
  for (const DType dtype : {dtype_, table_dtype()}) {
    for (const bool transposed : {false, true}) {
      absl::StrAppend(&all, "packing ", ProbePacking(device_, dtype, transposed), "\n");
    }
  }
  for (const int64_t used : used_) absl::StrAppend(&all, "block ", used, "\n");
  for (const Weight& weight : weights_) {
    absl::StrAppend(&all, static_cast<int>(weight.kind), " ", static_cast<int>(weight.dtype), " ",
                    weight.bytes);
    for (const TensorView* tensor : weight.tensors) {
      absl::StrAppend(&all, " ", tensor->name, " ", static_cast<int>(tensor->dtype));
      for (const int64_t size : tensor->shape) absl::StrAppend(&all, ",", size);
    }
    all += '\n';
  }
  return base::Hash64(all.data(), all.size());
}

absl::Status WeightLoader::MakeAll() {
  done_ = 0;
  SKEIN_RETURN_IF_ERROR(Done(0));
  for (const Weight& weight : weights_) SKEIN_RETURN_IF_ERROR(Make(weight));
  return absl::OkStatus();
}

absl::Status WeightLoader::Make(const Weight& weight) {
  switch (weight.kind) {
    case Kind::kVectors:
      MakeVectors(weight);
      return Done(weight.bytes);
    case Kind::kMatrix:
      return ForEachPiece(weight, kernels::kPackRows,
                          [&](const uint8_t* source, int64_t first, int64_t last) {
                            PackRows(weight, source, first, last);
                          });
    case Kind::kMatrixTransposed:  // whole: these are small
      return ForEachPiece(weight, weight.tensors[0]->shape[0],
                          [&](const uint8_t* source, int64_t first, int64_t last) {
                            PackRows(weight, source, first, last);
                          });
    case Kind::kTable:
      return ForEachPiece(weight, 1, [&](const uint8_t* source, int64_t first, int64_t last) {
        CopyRows(weight, source, first, last);
      });
  }
  return absl::InternalError("a kind of weight that nobody makes");
}

void WeightLoader::MakeVectors(const Weight& weight) {
  std::vector<float> host(weight.bytes / SizeOf(DType::kF32));
  float* next = host.data();
  for (const TensorView* tensor : weight.tensors) {
    tensor->CopyToF32(next);
    next += tensor->elements();
  }
  device_.CopyToDevice(weight.data, host.data(), weight.bytes, *stream_);
  stream_->Synchronize();
}

// Calls rows() for pieces of a tensor, each of whole units of rows but for the last one.
absl::Status WeightLoader::ForEachPiece(const Weight& weight, int64_t unit, RowsFunction rows) {
  const TensorView& tensor = *weight.tensors[0];
  const int64_t row = RowBytes(tensor), total = tensor.shape[0];
  const int64_t step = std::max<int64_t>(1, kPieceBytes / (row * unit)) * unit;
  std::vector<uint8_t> copy;
  for (int64_t first = 0; first < total; first += step) {
    const int64_t last = std::min(first + step, total);
    if (tensor.contiguous()) {
      const uint8_t* source = tensor.data + first * row;
      if (last < total) {
        checkpoint_.Expect(source + (last - first) * row, std::min(step, total - last) * row);
      }
      rows(source, first, last);
      checkpoint_.Release(source, (last - first) * row);
    } else {
      copy.resize((last - first) * row);
      tensor.Rows(first, last).CopyRaw(copy.data());
      rows(copy.data(), first, last);
    }
    SKEIN_RETURN_IF_ERROR(Done(weight.bytes * last / total - weight.bytes * first / total));
  }
  return absl::OkStatus();
}

void WeightLoader::PackRows(const Weight& weight, const uint8_t* source, int64_t first,
                            int64_t last) {
  const TensorView& tensor = *weight.tensors[0];
  kernels::PackParams params;
  params.source = source;
  params.source_dtype = tensor.dtype;
  params.transposed = weight.kind == Kind::kMatrixTransposed;
  params.O = static_cast<int32_t>(tensor.shape[params.transposed ? 1 : 0]);
  params.K = static_cast<int32_t>(tensor.shape[params.transposed ? 0 : 1]);
  if (!params.transposed) {
    params.first = static_cast<int32_t>(first);
    params.last = static_cast<int32_t>(last);
  }
  params.dtype = weight.dtype;
  params.out = weight.data;
  device_.ops().pack(params, *stream_);
  stream_->Synchronize();
}

void WeightLoader::CopyRows(const Weight& weight, const uint8_t* source, int64_t first,
                            int64_t last) {
  constexpr int64_t kElements = int64_t{1} << 18;
  const TensorView& tensor = *weight.tensors[0];
  const int64_t row = tensor.elements() / tensor.shape[0], n = (last - first) * row;
  char* out = weight.data + first * row * SizeOf(weight.dtype);
  base::ParallelFor(device_.info().threads, (n + kElements - 1) / kElements, [&](int64_t part) {
    const int64_t begin = part * kElements, count = std::min(kElements, n - begin);
    const uint8_t* from = source + begin * SizeOf(tensor.dtype);
    std::vector<uint8_t> host;
    if (tensor.dtype != weight.dtype) {
      host.resize(count * SizeOf(weight.dtype));
      Convert(from, tensor.dtype, count, weight.dtype, host.data());
      from = host.data();
    }
    const auto stream = device_.NewStream();
    device_.CopyToDevice(out + begin * SizeOf(weight.dtype), from, count * SizeOf(weight.dtype),
                         *stream);
    stream->Synchronize();
  });
}

// Tells how far it is; CANCELLED when nobody wants the rest.
absl::Status WeightLoader::Done(int64_t bytes) {
  done_ += bytes;
  if (options_.progress) options_.progress({LoadProgress::Stage::kPacking, done_, bytes_});
  if (options_.wanted && !options_.wanted()) return absl::CancelledError("loading was cancelled");
  return absl::OkStatus();
}

}  // namespace skein::engine
