#include "trainer/parameters.h"

#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/check.h"
#include "engine/base/file.h"

namespace skein::trainer {
namespace {

int64_t Product(const std::vector<int64_t>& shape) {
  int64_t n = 1;
  for (int64_t d : shape) n *= d;
  return n;
}

std::vector<int64_t> Squeezed(const std::vector<int64_t>& shape) {
  std::vector<int64_t> out;
  std::copy_if(shape.begin(), shape.end(), std::back_inserter(out),
               [](int64_t d) { return d != 1; });
  return out;
}

}  // namespace

Group GroupOf(const std::string& name, const std::vector<int64_t>& shape) {
  if (name.find("att.w0") != std::string::npos) return Group::kDecayBase;
  if (Squeezed(shape).size() >= 2 && name.find(".weight") != std::string::npos)
    return Group::kMatrix;
  return Group::kOther;
}

int64_t Parameter::elements() const { return Product(shape); }

int Parameters::Add(std::vector<std::string> names, std::vector<int64_t> file_shape,
                    std::vector<int64_t> shape) {
  SKEIN_CHECK(!master_.defined());
  SKEIN_CHECK(Product(file_shape) * static_cast<int64_t>(names.size()) == Product(shape));
  Parameter p;
  p.group = GroupOf(names.front(), file_shape);
  p.names = std::move(names);
  p.file_shape = std::move(file_shape);
  p.shape = std::move(shape);
  list_.push_back(std::move(p));
  return static_cast<int>(list_.size()) - 1;
}

void Parameters::Allocate() {
  int64_t n = 0;
  for (int group = 0; group < kGroups; ++group) {
    const int64_t begin = n;
    for (Parameter& p : list_) {
      if (p.group != static_cast<Group>(group)) continue;
      p.offset = n;
      n += (p.elements() + 15) / 16 * 16;  // 64-byte aligned; the padding stays zero
    }
    ranges_[static_cast<size_t>(group)] = {begin, n};
  }
  master_ = at::zeros({n}, at::kFloat);
  MakeLeaves();
}

Parameters Parameters::Twin() const {
  Parameters twin = *this;
  twin.MakeLeaves();
  return twin;
}

void Parameters::MakeLeaves() {
  gradient_ = at::zeros_like(master_);
  for (Parameter& p : list_) {
    p.leaf = master_.narrow(0, p.offset, p.elements()).view(p.shape).detach();
    p.leaf.set_requires_grad(true);
    p.leaf.mutable_grad() = gradient_.narrow(0, p.offset, p.elements()).view(p.shape);
  }
}

int64_t Parameters::count() const {
  int64_t n = 0;
  for (const Parameter& p : list_) n += p.elements();
  return n;
}

uint64_t Parameters::LayoutHash() const {
  std::string text;
  for (const Parameter& p : list_) {
    absl::StrAppend(&text, absl::StrJoin(p.names, ","), " ", absl::StrJoin(p.shape, "x"), " @",
                    p.offset, "\n");
  }
  return base::Hash64(text.data(), text.size());
}

absl::Status Parameters::LoadFrom(const engine::Checkpoint& checkpoint) {
  for (Parameter& p : list_) {
    const int64_t each = Product(p.file_shape);
    for (size_t i = 0; i < p.names.size(); ++i) {
      const engine::TensorView* view = checkpoint.Find(p.names[i]);
      if (view == nullptr) {
        return absl::InvalidArgumentError(
            absl::StrCat(checkpoint.path(), ": has no tensor ", p.names[i]));
      }
      if (Squeezed(view->shape) != Squeezed(p.file_shape)) {
        return absl::InvalidArgumentError(absl::StrCat(
            checkpoint.path(), ": ", p.names[i], " is [", absl::StrJoin(view->shape, ", "),
            "], expected [", absl::StrJoin(p.file_shape, ", "), "]"));
      }
      view->CopyToF32(master_.mutable_data_ptr<float>() + p.offset +
                      static_cast<int64_t>(i) * each);
    }
  }
  return absl::OkStatus();
}

}  // namespace skein::trainer
