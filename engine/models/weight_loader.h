#pragma once
// Takes tensors of a checkpoint to a device in the forms that the operators read. Used while a
// model loads; the model owns the buffers afterwards.
//
// First the model names its weights: each call gives out the memory of one. Then Fill() makes all
// of them: from the packed file, where there is one that fits, else from the checkpoint, in pieces
// on all threads. A piece of the checkpoint stays mapped only while it is read, so that loading
// takes little memory beside the weights.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "engine/checkpoint.h"
#include "engine/models/model.h"
#include "engine/models/packed_file.h"
#include "kernels/device.h"
#include "kernels/ops.h"

namespace skein::engine {

// The first error sticks: the calls after it do nothing, and Fill() tells it. So a model's load
// reads as a list of its tensors. Shapes were checked by RecognizeModel.
class WeightLoader {
 public:
  // All outlive it.
  WeightLoader(const Checkpoint& checkpoint, kernels::Device& device, const ModelOptions& options)
      : checkpoint_(checkpoint),
        device_(device),
        stream_(device.NewStream()),
        options_(options),
        dtype_(options.weights) {}

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

  absl::Status Fill();
  int64_t bytes() const { return bytes_; }
  std::vector<kernels::Buffer> TakeBuffers() { return std::move(buffers_); }

 private:
  enum class Kind : uint8_t { kVectors, kMatrix, kMatrixTransposed, kTable };
  struct Weight {
    Kind kind;
    std::vector<const TensorView*> tensors;  // more than one: vectors
    DType dtype;                             // in memory
    char* data;                              // device memory
    int64_t bytes;
  };
  // Rows [first, last) of a tensor, contiguous.
  using RowsFunction = absl::FunctionRef<void(const uint8_t* source, int64_t first, int64_t last)>;

  kernels::PackedMatrix Pack(const std::string& name, bool transposed, DType dtype);
  const TensorView* Find(const std::string& name);
  char* Add(Kind kind, std::vector<const TensorView*> tensors, DType dtype, int64_t bytes);
  char* Allocate(int64_t bytes, const std::string& name);

  PackedImage Image() const;
  uint64_t Layout() const;
  absl::Status MakeAll();
  absl::Status Make(const Weight& weight);
  void MakeVectors(const Weight& weight);
  absl::Status ForEachPiece(const Weight& weight, int64_t unit, RowsFunction rows);
  void PackRows(const Weight& weight, const uint8_t* source, int64_t first, int64_t last);
  void CopyRows(const Weight& weight, const uint8_t* source, int64_t first, int64_t last);
  absl::Status Done(int64_t bytes);

  const Checkpoint& checkpoint_;
  kernels::Device& device_;
  const std::unique_ptr<kernels::Stream> stream_;
  const ModelOptions& options_;
  const DType dtype_;
  absl::Status status_;
  std::vector<Weight> weights_;
  int64_t bytes_ = 0;
  int64_t done_ = 0;  // of bytes_
  std::vector<kernels::Buffer> buffers_;
  std::vector<int64_t> used_;  // bytes of each buffer
};

}  // namespace skein::engine
