#include "engine/sampling_state.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/base/status.h"
#include "engine/tokenizer.h"

namespace skein::engine {
namespace {

using kernels::TokenValue;
constexpr float kBanned = -std::numeric_limits<float>::infinity();
constexpr int32_t kMostReserved = 1 << 16;

// One entry a token; values of the same token are added up.
void Merge(std::vector<TokenValue>* values) {
  std::sort(values->begin(), values->end(),
            [](const TokenValue& a, const TokenValue& b) { return a.token < b.token; });
  size_t n = 0;
  for (const TokenValue& value : *values) {
    if (n > 0 && (*values)[n - 1].token == value.token) {
      (*values)[n - 1].value += value.value;
    } else {
      (*values)[n++] = value;
    }
  }
  values->resize(n);
}

}  // namespace

SamplingState::SamplingState(const SamplingOptions& sampling, const StoppingOptions& stopping,
                             bool want_logprobs, int32_t top_logprobs, uint64_t seed,
                             const uint32_t* mask)
    : penalty_decay_(sampling.penalty_decay),
      penalties_(sampling.presence_penalty != 0 || sampling.frequency_penalty != 0 ||
                 sampling.repetition_penalty != 1.0f),
      min_tokens_(stopping.min_tokens) {
  row_.temperature = sampling.temperature;
  row_.top_k = sampling.top_k;
  row_.top_p = sampling.top_p;
  row_.min_p = sampling.min_p;
  row_.top_p_before_temperature = sampling.top_p_before_temperature;
  row_.presence_penalty = sampling.presence_penalty;
  row_.frequency_penalty = sampling.frequency_penalty;
  row_.repetition_penalty = sampling.repetition_penalty;
  row_.seed = seed;
  row_.num_logprobs = want_logprobs ? top_logprobs : 0;
  row_.mask = mask;
  bias_ = sampling.logit_bias;
  for (const int32_t token : sampling.banned_tokens) bias_.push_back({token, kBanned});
  Merge(&bias_);
  if (min_tokens_ > 0) {
    early_bias_ = bias_;
    if (!stopping.ignore_eos) early_bias_.push_back({kEndOfDocument, kBanned});
    for (const int32_t token : stopping.stop_tokens) early_bias_.push_back({token, kBanned});
    Merge(&early_bias_);
  }
  if (penalties_) counts_.reserve(std::min(stopping.max_tokens, kMostReserved));
}

void SamplingState::Fill(kernels::SampleRow* row) const {
  *row = row_;
  const std::vector<TokenValue>& bias =
      row_.position < static_cast<uint64_t>(min_tokens_) ? early_bias_ : bias_;
  row->bias = bias.data();
  row->num_bias = static_cast<int32_t>(bias.size());
  row->counts = counts_.data();
  row->num_counts = static_cast<int32_t>(counts_.size());
  if (constraint_ != nullptr) row->mask = allowed_.data();
}

void SamplingState::CountBefore(std::span<const int32_t> earlier, std::span<const int32_t> input) {
  if (!penalties_) return;
  struct Count {
    size_t place;  // in counts_
    double value;
    int64_t last;  // position of the latest one
  };
  absl::flat_hash_map<int32_t, Count> found;
  const double decay = penalty_decay_;
  int64_t position = 0;
  for (const std::span<const int32_t> part : {earlier, input}) {
    for (const int32_t token : part) {
      const auto [it, first] = found.try_emplace(token, Count{found.size(), 1, position});
      Count& count = it->second;
      if (!first) count.value = count.value * std::pow(decay, position - count.last) + 1;
      count.last = position++;
    }
  }
  counts_.reserve(counts_.capacity() + found.size());
  counts_.resize(found.size());
  for (const auto& [token, count] : found) {
    counts_[count.place] = {
        token, static_cast<float>(count.value * std::pow(decay, position - 1 - count.last))};
  }
}

void SamplingState::Constrain(std::unique_ptr<Constraint> constraint) {
  constraint_ = std::move(constraint);
  allowed_.resize(constraint_->Allowed().size());
  UpdateAllowed();
}

SamplingState SamplingState::Clone(uint64_t seed) const {
  SamplingState copy;
  copy.row_ = row_;
  copy.row_.seed = seed;
  copy.penalty_decay_ = penalty_decay_;
  copy.penalties_ = penalties_;
  copy.min_tokens_ = min_tokens_;
  copy.bias_ = bias_;
  copy.early_bias_ = early_bias_;
  copy.counts_.reserve(counts_.capacity());
  copy.counts_ = counts_;
  if (constraint_ != nullptr) copy.Constrain(constraint_->Clone());
  return copy;
}

void SamplingState::UpdateAllowed() {
  const std::span<const uint32_t> by_constraint = constraint_->Allowed();
  SKEIN_CHECK(by_constraint.size() == allowed_.size());
  uint32_t any = 0;
  for (size_t i = 0; i < allowed_.size(); ++i) {
    allowed_[i] = by_constraint[i] & (row_.mask != nullptr ? row_.mask[i] : ~uint32_t{0});
    any |= allowed_[i];
  }
  some_allowed_ = any != 0;
}

void SamplingState::Accept(int32_t token) {
  ++row_.position;
  if (constraint_ != nullptr) {
    constraint_->Accept(token);
    UpdateAllowed();
  }
  if (!penalties_) return;
  bool seen = false;
  for (TokenValue& count : counts_) {
    count.value *= penalty_decay_;
    if (count.token != token) continue;
    count.value += 1;
    seen = true;
  }
  if (!seen) counts_.push_back({token, 1.0f});
}

absl::Status CheckSampling(const SamplingOptions& sampling, const StoppingOptions& stopping,
                           int32_t V, int64_t valid) {
  const auto known = [&](int32_t token) { return token >= 0 && token < V; };
  const auto unknown = [&](absl::string_view field, int32_t token) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ": token id ", token, " is not in [0, ", V, ")"));
  };
  if (!(sampling.temperature >= 0) || !std::isfinite(sampling.temperature)) {
    return absl::InvalidArgumentError("sampling.temperature must be finite and not negative");
  }
  for (const TokenValue& bias : sampling.logit_bias) {
    if (!known(bias.token)) return unknown("sampling.logit_bias", bias.token);
    if (std::isnan(bias.value) || bias.value == std::numeric_limits<float>::infinity()) {
      return absl::InvalidArgumentError("sampling.logit_bias: values must be finite, or -infinity");
    }
  }
  std::vector<int32_t> banned = sampling.banned_tokens;
  for (const int32_t token : banned) {
    if (!known(token)) return unknown("sampling.banned_tokens", token);
  }
  for (const int32_t token : stopping.stop_tokens) {
    if (!known(token)) return unknown("stopping.stop_tokens", token);
  }
  if (stopping.min_tokens > 0) {
    banned.insert(banned.end(), stopping.stop_tokens.begin(), stopping.stop_tokens.end());
    if (!stopping.ignore_eos) banned.push_back(kEndOfDocument);
  }
  std::sort(banned.begin(), banned.end());
  banned.erase(std::unique(banned.begin(), banned.end()), banned.end());
  if (static_cast<int64_t>(banned.size()) >= valid) {
    return base::InvalidField("sampling.banned_token_ids", "every token is banned");
  }
  if (stopping.max_tokens < 0 || stopping.min_tokens < 0) {
    return absl::InvalidArgumentError("stopping.max_tokens and min_tokens must not be negative");
  }
  for (const std::string& stop : stopping.stop_strings) {
    if (stop.empty())
      return absl::InvalidArgumentError("stopping.stop_strings: a stop string is empty");
  }
  return absl::OkStatus();
}

}  // namespace skein::engine
