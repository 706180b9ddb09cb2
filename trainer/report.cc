#include "trainer/report.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "engine/base/check.h"
#include "engine/base/file.h"
#include "engine/tokenizer.h"

namespace skein::trainer {
namespace {

using nlohmann::json;

std::string Dump(const json& object) {  // samples may hold bytes that are not UTF-8
  return object.dump(-1, ' ', false, json::error_handler_t::replace);
}

// A model of bytes may write any: a terminal gets valid UTF-8 without control characters (Cc: below
// a space, DEL, and U+0080 to U+009F, which are 0xC2 and one more byte).
std::string Printable(const std::string& sample) {
  std::string text, shown;
  engine::Utf8Stream stream;
  stream.Push(sample, &text);
  stream.Finish(&text);
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  for (size_t i = 0; i < text.size(); ++i) {
    if (byte(i) == 0xc2 && byte(i + 1) < 0xa0) {
      shown += '?';
      ++i;
    } else {
      const bool control = (byte(i) < ' ' && byte(i) != '\n') || byte(i) == 0x7f;
      shown += control ? '?' : text[i];
    }
  }
  return shown;
}

// The lines of a log up to a step. What was killed may have logged more steps than it saved, and
// the last line by half; the resumed run makes them again.
std::string LinesUpTo(int64_t step, const std::string& log) {
  std::string kept;
  for (const absl::string_view line : absl::StrSplit(log, '\n', absl::SkipEmpty())) {
    const json object = json::parse(line.begin(), line.end(), nullptr, /*allow_exceptions=*/false);
    if (object.is_object() && object.value("step", step + 1) <= step)
      absl::StrAppend(&kept, line, "\n");
  }
  return kept;
}

}  // namespace

Reporter::Reporter(const LogConfig& config, RunFolder* folder, int64_t first_step)
    : config_(config), folder_(folder), bar_(first_step, config.every) {
  if (folder == nullptr) return;
  if (folder->existed()) Complain(CutLog(first_step));
  if (!config.tensorboard) return;
  auto events = EventWriter::Create(folder->path(), first_step);
  if (events.ok()) {
    events_ = *std::move(events);
  } else {
    Complain(events.status());
  }
}

void Reporter::Print(const std::string& text) {
  if (folder_ != nullptr) bar_.Print(text);
}

void Reporter::Finish() {
  if (folder_ != nullptr) bar_.Finish();
}

void Reporter::Step(const StepLine& line, int64_t tokens_seen) {
  if (folder_ == nullptr) return;
  bar_.Show(line);
  if (line.step % config_.every != 0 && line.step != line.steps) return;
  Write(Dump({{"step", line.step},
              {"loss", line.loss},
              {"lr", line.lr},
              {"grad_norm", line.norm},
              {"tokens_per_second", line.tokens_per_second},
              {"tokens_seen", tokens_seen}}));
  Scalars(line.step, {{"train/loss", line.loss},
                      {"train/lr", line.lr},
                      {"train/grad_norm", line.norm},
                      {"train/tokens_per_second", line.tokens_per_second}});
}

void Reporter::Skipped(int64_t step, const std::string& reason) {
  if (folder_ == nullptr) return;
  Print(absl::StrFormat("step %d: skipped, %s; the weights are as before", step, reason));
  Write(Dump({{"step", step}, {"skipped", true}, {"reason", reason}}));
}

void Reporter::Validation(const ValidationReport& r) {
  if (folder_ == nullptr) return;
  std::string text = absl::StrFormat("step %d: validation loss %.4f, %.4f bits per byte%s", r.step,
                                     r.loss, r.bits_per_byte, r.best ? " (best so far)" : "");
  if (r.recall >= 0) text += absl::StrFormat(", recall of held-out values %.1f %%", 100 * r.recall);
  Print(text);
  for (const std::string& sample : r.samples) Print("  | " + Printable(sample));
  json object = {{"step", r.step},
                 {"validation_loss", r.loss},
                 {"bits_per_byte", r.bits_per_byte},
                 {"seconds", r.seconds},
                 {"samples", r.samples}};
  std::vector<std::pair<std::string, double>> scalars = {
      {"validation/loss", r.loss}, {"validation/bits_per_byte", r.bits_per_byte}};
  if (r.recall >= 0) {
    object["recall"] = r.recall;
    scalars.emplace_back("validation/recall", r.recall);
  }
  Write(Dump(object));
  Scalars(r.step, scalars);
}

absl::Status Reporter::CutLog(int64_t step) {
  auto log = base::ReadFile(folder_->LogFile());
  if (absl::IsNotFound(log.status())) return absl::OkStatus();
  SKEIN_RETURN_IF_ERROR(log.status());
  return base::WriteFileAtomically(folder_->LogFile(), LinesUpTo(step, *log));
}

void Reporter::Write(const std::string& line) { Complain(folder_->Log(line)); }

void Reporter::Scalars(int64_t step, const std::vector<std::pair<std::string, double>>& values) {
  if (events_ != nullptr) Complain(events_->Scalars(step, values));
}

void Reporter::Complain(const absl::Status& status) {
  if (status.ok() || complained_) return;
  complained_ = true;
  Print("warning: the log cannot be written, training goes on: " + std::string(status.message()));
}

}  // namespace skein::trainer
