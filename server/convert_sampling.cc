// What is sampled, where it stops and what is shown: proto -> engine.

#include <cmath>

#include "absl/strings/str_cat.h"
#include "server/convert_fields.h"

namespace skein::server {
namespace {

// Takes a float that was set and lies in [lo, hi] (or (lo, hi] when `open`). NaN lies nowhere.
void Take(bool set, float value, float lo, float hi, bool open, absl::string_view field, float* out,
          FieldViolations* bad) {
  if (!set) return;
  if (!(value >= lo && value <= hi) || (open && value == lo)) {
    bad->Add(field,
             absl::StrCat("is ", value, ", must be in ", open ? "(" : "[", lo, ", ", hi, "]"));
    return;
  }
  *out = value;
}

void TakeMaxTime(const v1::Stopping& in, engine::StoppingOptions* out, FieldViolations* bad) {
  if (!in.has_max_time()) return;
  const auto& d = in.max_time();
  if (d.seconds() < 0 || d.nanos() < 0 || d.nanos() > 999999999 || d.seconds() > 315576000000 ||
      (d.seconds() == 0 && d.nanos() == 0)) {
    bad->Add("stopping.max_time", "must be a positive duration");
    return;
  }
  out->max_time = absl::Seconds(d.seconds()) + absl::Nanoseconds(d.nanos());
}

}  // namespace

void TakeInt(bool set, int64_t value, int64_t lo, int64_t hi, absl::string_view field, int32_t* out,
             FieldViolations* bad) {
  if (!set) return;
  if (value < lo || value > hi) {
    bad->Add(field, absl::StrCat("is ", value, ", must be in [", lo, ", ", hi, "]"));
    return;
  }
  *out = static_cast<int32_t>(value);
}

void TakeSampling(const v1::Sampling& in, const LimitsConfig& limits, int32_t V,
                  engine::SamplingOptions* out, FieldViolations* bad) {
  Take(in.has_temperature(), in.temperature(), 0, 10, false, "sampling.temperature",
       &out->temperature, bad);
  Take(in.has_top_p(), in.top_p(), 0, 1, true, "sampling.top_p", &out->top_p, bad);
  TakeInt(in.has_top_k(), in.top_k(), 0, INT32_MAX, "sampling.top_k", &out->top_k, bad);
  Take(in.has_min_p(), in.min_p(), 0, 1, false, "sampling.min_p", &out->min_p, bad);
  Take(in.has_presence_penalty(), in.presence_penalty(), -10, 10, false,
       "sampling.presence_penalty", &out->presence_penalty, bad);
  Take(in.has_frequency_penalty(), in.frequency_penalty(), -10, 10, false,
       "sampling.frequency_penalty", &out->frequency_penalty, bad);
  Take(in.has_penalty_decay(), in.penalty_decay(), 0, 1, true, "sampling.penalty_decay",
       &out->penalty_decay, bad);
  Take(in.has_repetition_penalty(), in.repetition_penalty(), 0, 10, true,
       "sampling.repetition_penalty", &out->repetition_penalty, bad);
  if (in.penalty_scope() == v1::PENALTY_SCOPE_CONVERSATION) {
    out->penalty_scope = engine::PenaltyScope::kConversation;
  }
  if (in.has_seed()) out->seed = in.seed();
  if (in.has_top_p_before_temperature()) {
    out->top_p_before_temperature = in.top_p_before_temperature();
  }
  CheckCount(in.logit_bias_size(), limits.logit_bias, "sampling.logit_bias", bad);
  for (const auto& [token, value] : in.logit_bias()) {
    const std::string field = absl::StrCat("sampling.logit_bias[", token, "]");
    if (token < 0 || token >= V)
      bad->Add(field, absl::StrCat("token id is outside of [0, ", V, ")"));
    if (!std::isfinite(value)) bad->Add(field, "must be finite; use banned_token_ids to ban");
    out->logit_bias.push_back({token, value});
  }
  CheckCount(in.banned_token_ids_size(), limits.logit_bias, "sampling.banned_token_ids", bad);
  CheckTokenIds(in.banned_token_ids(), V, "sampling.banned_token_ids", bad);
  out->banned_tokens.assign(in.banned_token_ids().begin(), in.banned_token_ids().end());
}

void TakeStopping(const v1::Stopping& in, const LimitsConfig& limits, int32_t V,
                  engine::StoppingOptions* out, FieldViolations* bad) {
  TakeInt(in.has_max_tokens(), in.max_tokens(), 0, limits.max_tokens, "stopping.max_tokens",
          &out->max_tokens, bad);
  TakeInt(in.has_min_tokens(), in.min_tokens(), 0, out->max_tokens, "stopping.min_tokens",
          &out->min_tokens, bad);
  TakeMaxTime(in, out, bad);
  CheckCount(in.stop_strings_size(), limits.stop_strings, "stopping.stop_strings", bad);
  for (int i = 0; i < in.stop_strings_size(); ++i) {
    const std::string& text = in.stop_strings(i);
    const std::string field = absl::StrCat("stopping.stop_strings[", i, "]");
    if (text.empty()) bad->Add(field, "is empty");
    if (text.size() > limits.stop_string_bytes) {
      bad->Add(field,
               absl::StrCat("has ", text.size(), " bytes; at most ", limits.stop_string_bytes));
    }
    out->stop_strings.push_back(text);
  }
  CheckCount(in.stop_token_ids_size(), limits.stop_token_ids, "stopping.stop_token_ids", bad);
  CheckTokenIds(in.stop_token_ids(), V, "stopping.stop_token_ids", bad);
  out->stop_tokens.assign(in.stop_token_ids().begin(), in.stop_token_ids().end());
  if (in.has_ignore_eos()) out->ignore_eos = in.ignore_eos();
}

void TakeOutput(const v1::Output& in, const LimitsConfig& limits, OutputChoice* out,
                FieldViolations* bad) {
  if (in.has_text()) out->text = in.text();
  TakeInt(in.has_top_logprobs(), in.top_logprobs(), 0, limits.top_logprobs, "output.top_logprobs",
          &out->top_logprobs, bad);
  out->logprobs = in.logprobs() || out->top_logprobs > 0;
  out->tokens = in.token_ids() || out->logprobs;
  out->prompt_logprobs = in.prompt_logprobs();
}

}  // namespace skein::server
