#include "client/load_plan.h"

namespace skein::client {
namespace {

// Neighbouring sessions must not draw related numbers (splitmix64's last step).
uint64_t Mix(uint64_t seed, uint64_t index) {
  uint64_t z = seed + 0x9E3779B97F4A7C15u * (index + 1);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

}  // namespace

const char kLoadText[] =
    "A skein is a flight of geese, and also a length of yarn wound for the loom. The birds take "
    "turns in front, where the air is hardest to part, and each one rides on the wave that the one "
    "before it leaves behind. In the second week of October they cross the valley in the early "
    "morning; people stop, look up, and count them. \"Forty-two,\" said the miller's daughter, who "
    "was seven. \"Forty-three,\" said her brother. Nobody ever settles it. What is certain: 1. "
    "they "
    "return in March; 2. they find the same pond; 3. they have forgotten nothing of the way.\n";

SessionPlan::SessionPlan(const LoadOptions& options, int64_t index)
    : options_(options),
      random_(Mix(options.seed, static_cast<uint64_t>(index))),
      turns_(options.turns.DrawInt(&random_, 1)),
      in_conversation_(!options.turns.IsAlways(1)) {}

RequestPlan SessionPlan::NextRequest() {
  RequestPlan plan;
  plan.prompt = options_.prompt.DrawInt(&random_, 1);
  plan.output = options_.output.DrawInt(&random_, 0);
  const double end = std::uniform_real_distribution<double>()(random_);
  if (end < options_.cancel) {
    plan.end = RequestPlan::End::kCancel;
  } else if (end < options_.cancel + options_.hang_up) {
    plan.end = RequestPlan::End::kHangUp;
  }
  plan.end_after = std::uniform_int_distribution<int64_t>(0, plan.output)(random_);
  plan.slow = std::uniform_real_distribution<double>()(random_) < options_.slow;
  return plan;
}

void SessionPlan::AddPrompt(const std::vector<int32_t>& text, int64_t length, v1::TokenIds* out) {
  size_t at = std::uniform_int_distribution<size_t>(0, text.size() - 1)(random_);
  out->mutable_ids()->Reserve(static_cast<int>(length));
  for (int64_t i = 0; i < length; ++i) {
    out->add_ids(text[at]);
    at = at + 1 == text.size() ? 0 : at + 1;
  }
}

}  // namespace skein::client
