#pragma once
// All weights of a model in one flat fp32 buffer, and their gradients in a second one of the same
// layout, so that the optimizer, the gradient norm and the training state each walk memory once.
// Leaves are views into both.

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/checkpoint.h"

namespace skein::trainer {

// AdamW treats a parameter by its group.
enum class Group {
  kMatrix,
  kOther,
  kDecayBase
};  // weight decay; none; none and twice the learning rate
inline constexpr int kGroups = 3;

// By the name in the checkpoint and its shape there: "att.w0"; two dimensions or more and
// ".weight"; the rest.
Group GroupOf(const std::string& name, const std::vector<int64_t>& shape);

struct Parameter {
  std::vector<std::string>
      names;  // in the checkpoint; when several, the leaf's first dimension counts them
  std::vector<int64_t> file_shape;  // of each name
  std::vector<int64_t> shape;       // of the leaf
  Group group = Group::kOther;
  int64_t offset = 0;  // floats, into the flat buffers; a multiple of 16
  at::Tensor leaf;
  int64_t elements() const;
};

class Parameters {
 public:
  // Before Allocate. Returns the index of the parameter.
  int Add(std::vector<std::string> names, std::vector<int64_t> file_shape,
          std::vector<int64_t> shape);
  // Lays the groups out one after the other and makes the leaves.
  void Allocate();
  // The same weights with leaves and a gradient of their own.
  Parameters Twin() const;

  const std::vector<Parameter>& list() const { return list_; }
  const at::Tensor& leaf(int index) const { return list_[index].leaf; }
  at::Tensor& master() { return master_; }  // [n] fp32
  const at::Tensor& master() const { return master_; }
  at::Tensor& gradient() { return gradient_; }  // [n] fp32; backward adds into it
  std::pair<int64_t, int64_t> Range(Group group) const {
    return ranges_[static_cast<size_t>(group)];
  }
  int64_t count() const;  // of real parameters, without padding
  // Hash of names, shapes and offsets: a saved flat buffer belongs to this layout.
  uint64_t LayoutHash() const;

  // Fills all leaves from a checkpoint; INVALID_ARGUMENT names a missing or wrongly shaped tensor.
  absl::Status LoadFrom(const engine::Checkpoint& checkpoint);

 private:
  void MakeLeaves();

  std::vector<Parameter> list_;
  std::array<std::pair<int64_t, int64_t>, kGroups> ranges_;
  at::Tensor master_, gradient_;
};

}  // namespace skein::trainer
