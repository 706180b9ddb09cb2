#include "trainer/training_state.h"

#include <cstring>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/checkpoint.h"

namespace skein::trainer {
namespace {

constexpr char kFormat[] = "skein-training-state-1";

// Doubles are kept as bits: a resumed run compares losses exactly.
std::string Bits(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return absl::StrCat(bits);
}

absl::StatusOr<uint64_t> Number(const engine::Checkpoint& file, const std::string& key) {
  auto it = file.metadata().find(key);
  uint64_t value = 0;
  if (it == file.metadata().end() || !absl::SimpleAtoi(it->second, &value)) {
    return absl::InvalidArgumentError(absl::StrCat(file.path(), ": has no number '", key, "'"));
  }
  return value;
}

absl::StatusOr<std::unique_ptr<engine::Checkpoint>> OpenState(const std::string& path) {
  SKEIN_ASSIGN_OR_RETURN(std::unique_ptr<engine::Checkpoint> file, engine::Checkpoint::Open(path));
  auto format = file->metadata().find("format");
  if (format == file->metadata().end() || format->second != kFormat) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": is not a training state of this version (", kFormat, ")"));
  }
  return file;
}

absl::Status CopyInto(const engine::Checkpoint& file, const char* name, at::Tensor& flat) {
  const engine::TensorView* view = file.Find(name);
  if (view == nullptr || view->dtype != engine::DType::kF32 || view->elements() != flat.numel()) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": tensor '", name, "' is missing or has another size"));
  }
  view->CopyToF32(flat.mutable_data_ptr<float>());
  return absl::OkStatus();
}

}  // namespace

absl::Status SaveTrainingState(const std::string& path, const Progress& p,
                               const Parameters& parameters, Optimizer& optimizer) {
  const auto flat = [](const char* name, const at::Tensor& t) {
    return engine::TensorToWrite{name, engine::DType::kF32, {t.numel()}, t.const_data_ptr<float>()};
  };
  return engine::WriteSafetensors(
      path,
      {flat("master", parameters.master()), flat("m", optimizer.m()), flat("v", optimizer.v())},
      {{"format", kFormat},
       {"layout", absl::StrCat(parameters.LayoutHash())},
       {"step", absl::StrCat(p.step)},
       {"updates", absl::StrCat(optimizer.updates())},
       {"tokens_seen", absl::StrCat(p.tokens_seen)},
       {"best_loss_bits", Bits(p.best_loss)},
       {"best_step", absl::StrCat(p.best_step)},
       {"compute_bf16", p.compute_bf16 ? "1" : "0"},
       {"config", p.config}});
}

absl::StatusOr<Progress> ReadProgress(const std::string& path) {
  SKEIN_ASSIGN_OR_RETURN(const std::unique_ptr<engine::Checkpoint> file, OpenState(path));
  Progress p;
  SKEIN_ASSIGN_OR_RETURN(p.step, Number(*file, "step"));
  SKEIN_ASSIGN_OR_RETURN(p.tokens_seen, Number(*file, "tokens_seen"));
  SKEIN_ASSIGN_OR_RETURN(const uint64_t bits, Number(*file, "best_loss_bits"));
  std::memcpy(&p.best_loss, &bits, sizeof(bits));
  SKEIN_ASSIGN_OR_RETURN(p.best_step, Number(*file, "best_step"));
  SKEIN_ASSIGN_OR_RETURN(const uint64_t bf16, Number(*file, "compute_bf16"));
  p.compute_bf16 = bf16 != 0;
  auto config = file->metadata().find("config");
  if (config != file->metadata().end()) p.config = config->second;
  return p;
}

absl::Status LoadTrainingState(const std::string& path, Parameters* parameters,
                               Optimizer* optimizer) {
  SKEIN_ASSIGN_OR_RETURN(const std::unique_ptr<engine::Checkpoint> file, OpenState(path));
  SKEIN_ASSIGN_OR_RETURN(const uint64_t layout, Number(*file, "layout"));
  if (layout != parameters->LayoutHash()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": belongs to a model of another shape"));
  }
  SKEIN_ASSIGN_OR_RETURN(const uint64_t updates, Number(*file, "updates"));
  optimizer->set_updates(static_cast<int64_t>(updates));
  SKEIN_RETURN_IF_ERROR(CopyInto(*file, "master", parameters->master()));
  SKEIN_RETURN_IF_ERROR(CopyInto(*file, "m", optimizer->m()));
  return CopyInto(*file, "v", optimizer->v());
}

}  // namespace skein::trainer
