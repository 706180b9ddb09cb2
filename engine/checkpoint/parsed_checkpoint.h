#pragma once
// The one concrete Checkpoint: what both parsers return.

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/file.h"
#include "engine/checkpoint.h"

namespace skein::engine {

class ParsedCheckpoint final : public Checkpoint {
 public:
  ParsedCheckpoint(std::vector<TensorView> tensors, std::map<std::string, std::string> metadata) {
    tensors_ = std::move(tensors);
    metadata_ = std::move(metadata);
  }
  // Keeps the mapping that the tensors point into.
  void Attach(std::unique_ptr<base::MappedFile> file) {
    path_ = file->path();
    file_ = std::move(file);
  }

  std::optional<base::FileIdentity> identity() const override {
    if (file_ == nullptr) return std::nullopt;
    return file_->identity();
  }
  void Expect(const uint8_t* data, uint64_t bytes) const override {
    if (file_ != nullptr) file_->Expect(data, bytes);
  }
  void Release(const uint8_t* data, uint64_t bytes) const override {
    if (file_ != nullptr) file_->Release(data, bytes);
  }

 private:
  std::unique_ptr<base::MappedFile> file_;
};

absl::StatusOr<std::unique_ptr<ParsedCheckpoint>> ReadSafetensors(absl::string_view data);
absl::StatusOr<std::unique_ptr<ParsedCheckpoint>> ReadPth(absl::string_view data);

// More dimensions than any model has; keeps the shapes of hostile files small.
inline constexpr size_t kMaxDimensions = 8;
inline constexpr size_t kMaxTensors = 100000;

// INVALID_ARGUMENT unless the shape is not negative, has few dimensions, and the number of bytes
// fits; then `bytes` is set.
absl::Status CheckShape(const std::string& name, const std::vector<int64_t>& shape, DType dtype,
                        uint64_t* bytes);
std::vector<int64_t> RowMajorStrides(const std::vector<int64_t>& shape);

}  // namespace skein::engine
