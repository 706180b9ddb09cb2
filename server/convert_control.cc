#include "server/convert_control.h"

#include "server/convert.h"
#include "server/status.h"

namespace skein::server {
namespace {

constexpr size_t kMaxModelName = 128;
constexpr int64_t kLongestDrain = 366 * 24 * 3600;  // seconds

bool IsWeightType(const std::string& weights) {
  return weights == "auto" || weights == "bf16" || weights == "fp32" || weights == "int8" ||
         weights == "int8a8";
}

}  // namespace

absl::Status CheckModelName(const std::string& name) {
  FieldViolations bad;
  CheckId(name, "name", kMaxModelName, /*allow_empty=*/false, &bad);
  return bad.ToStatus();
}

absl::StatusOr<ModelSource> ToModelSource(const v1::LoadModelRequest& in) {
  ModelSource out;
  FieldViolations bad;
  out.path = in.path();
  CheckId(in.name(), "name", kMaxModelName, /*allow_empty=*/true, &bad);
  out.name = in.name();
  if (!in.weights().empty()) out.weights = in.weights();
  if (!IsWeightType(out.weights)) bad.Add("weights", "must be auto, bf16, fp32, int8 or int8a8");
  if (!bad.empty()) return bad.ToStatus();
  return out;
}

absl::Status Check(const v1::UnloadModelRequest& in) {
  return in.name().empty() ? BadField("name", "is empty") : absl::OkStatus();
}

absl::StatusOr<absl::Duration> ToTimeout(const v1::DrainRequest& in) {
  if (!in.has_timeout()) return absl::InfiniteDuration();
  const auto& t = in.timeout();
  if (t.seconds() < 0 || t.seconds() > kLongestDrain || t.nanos() < 0 || t.nanos() > 999'999'999) {
    return BadField("timeout", "must be a duration from 0 to a year");
  }
  return absl::Seconds(t.seconds()) + absl::Nanoseconds(t.nanos());
}

}  // namespace skein::server
