#pragma once
// Takes tensors of a checkpoint to a device in the forms that the operators read. Used while a
// model loads; the model owns the buffers afterwards.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "engine/checkpoint.h"
#include "kernels/device.h"
#include "kernels/ops.h"

namespace skein::engine {

// The first error sticks: the calls after it do nothing, and status() tells it. So a model's load
// reads as a list of its tensors. Shapes were checked by RecognizeModel.
class WeightLoader {
 public:
  WeightLoader(const Checkpoint& checkpoint, kernels::Device& device, kernels::Stream& stream,
               DType dtype)
      : checkpoint_(checkpoint), device_(device), stream_(stream), dtype_(dtype) {}

  // A vector as fp32 ([C], [1,1,C] or [H,N]).
  const float* Vector(const std::string& name);
  // Vectors of C floats one after another: [n, C].
  const float* Vectors(const std::vector<std::string>& names, int32_t C);
  // A matrix for OpTable::matmul, stored [out, in] (nn.Linear).
  kernels::PackedMatrix Matrix(const std::string& name) { return Pack(name, false, dtype_); }
  // A matrix stored [in, out] (the low-rank branches, used as x @ W). These are small and steer the
  // state: they stay bf16 when the others are int8.
  kernels::PackedMatrix MatrixTransposed(const std::string& name) {
    return Pack(name, true, table_dtype());
  }
  // Row-major in table_dtype() (the embedding, from which rows are gathered).
  const void* Table(const std::string& name);
  DType table_dtype() const { return IsInt8(dtype_) ? DType::kBF16 : dtype_; }

  const absl::Status& status() const { return status_; }
  int64_t bytes() const { return bytes_; }
  std::vector<kernels::Buffer> TakeBuffers() { return std::move(buffers_); }

 private:
  kernels::PackedMatrix Pack(const std::string& name, bool transposed, DType dtype);
  const TensorView* Find(const std::string& name);
  void* Allocate(int64_t bytes, const std::string& name);

  const Checkpoint& checkpoint_;
  kernels::Device& device_;
  kernels::Stream& stream_;
  const DType dtype_;
  absl::Status status_;
  int64_t bytes_ = 0;
  std::vector<kernels::Buffer> buffers_;
  char* free_ = nullptr;  // the rest of the last buffer
  int64_t free_bytes_ = 0;
};

}  // namespace skein::engine
