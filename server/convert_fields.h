#pragma once
// Parts of the conversion of requests that its files share: convert_request.cc (whole requests),
// convert_sampling.cc and convert_input.cc.

#include <cstdint>

#include "engine/request.h"
#include "server/convert.h"

namespace skein::server {

// ---- convert_sampling.cc. What is bad goes to *bad by its path; fields that are not set leave
// *out as it was.
void TakeInt(bool set, int64_t value, int64_t lo, int64_t hi, absl::string_view field, int32_t* out,
             FieldViolations* bad);
void TakeSampling(const v1::Sampling& in, const LimitsConfig& limits, int32_t V,
                  engine::SamplingOptions* out, FieldViolations* bad);
void TakeStopping(const v1::Stopping& in, const LimitsConfig& limits, int32_t V,
                  engine::StoppingOptions* out, FieldViolations* bad);
void TakeOutput(const v1::Output& in, const LimitsConfig& limits, OutputChoice* out,
                FieldViolations* bad);

// ---- convert_input.cc
void CheckTokenIds(const google::protobuf::RepeatedField<int32_t>& ids, int32_t V,
                   absl::string_view field, FieldViolations* bad);
void CheckCount(int64_t n, int64_t limit, absl::string_view field, FieldViolations* bad);
// `in` has `thinking` and may have `messages`, which it needs.
template <typename Proto>
engine::Thinking TakeThinking(const Proto& in, FieldViolations* bad) {
  if (!in.has_thinking()) return engine::Thinking::kOff;
  const absl::StatusOr<engine::Thinking> thinking = engine::ThinkingFromName(in.thinking());
  if (!thinking.ok()) bad->Add("thinking", thinking.status().message());
  if (!in.has_messages()) bad->Add("thinking", "needs messages");
  return thinking.value_or(engine::Thinking::kOff);
}

}  // namespace skein::server
