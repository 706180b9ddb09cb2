#include "trainer/generate.h"

#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>

#include "engine/base/check.h"
#include "engine/tokenizer.h"
#include "trainer/random.h"

namespace skein::trainer {
namespace {

struct RowState {
  size_t turn = 0;
  size_t fed = 0;  // tokens of the turn fed so far
  std::vector<int32_t> answer;
  bool done = false;
};

int32_t Pick(const float* logits, int32_t n, double temperature, Random* random) {
  const int32_t best = static_cast<int32_t>(std::max_element(logits, logits + n) - logits);
  if (temperature == 0) return best;
  double sum = 0;
  for (int32_t i = 0; i < n; ++i) sum += std::exp((logits[i] - logits[best]) / temperature);
  double left = random->Uniform() * sum;
  for (int32_t i = 0; i < n; ++i) {
    left -= std::exp((logits[i] - logits[best]) / temperature);
    if (left < 0) return i;
  }
  return best;
}

int32_t NextInput(const RowState& row, const Script& script) {
  if (row.done) return engine::kEndOfDocument;
  return row.fed < script[row.turn].size() ? script[row.turn][row.fed] : row.answer.back();
}

// Takes the logits after the row's last input.
void Advance(const Script& script, const float* logits, const GenerateOptions& o, Random* random,
             RowState* row, Script* answers) {
  if (row->done) return;
  if (row->fed < script[row->turn].size()) ++row->fed;
  if (row->fed < script[row->turn].size()) return;
  const int32_t token = Pick(logits, o.vocab, o.temperature, random);
  const bool stop =
      token == engine::kEndOfDocument ||
      std::find(o.stop_tokens.begin(), o.stop_tokens.end(), token) != o.stop_tokens.end();
  if (!stop) row->answer.push_back(token);
  if (!stop && static_cast<int64_t>(row->answer.size()) < o.max_tokens) return;
  answers->push_back(std::move(row->answer));
  row->answer.clear();
  row->fed = 0;
  row->done = ++row->turn == script.size();
}

}  // namespace

std::vector<Script> Generate(const Rwkv7& model, const std::vector<Script>& scripts,
                             const GenerateOptions& o) {
  c10::AutoGradMode off(false);
  const int64_t B = static_cast<int64_t>(scripts.size());
  const int64_t V = model.sizes().V;
  SKEIN_CHECK(o.vocab > 0 && o.vocab <= V);
  Rwkv7State state;
  ForwardOptions forward;
  forward.state = &state;
  std::vector<RowState> rows(scripts.size());
  std::vector<Script> answers(scripts.size());
  Random random(o.seed);
  at::Tensor tokens = at::zeros({B, 1}, at::kLong);
  const auto running = [](const RowState& row) { return !row.done; };
  while (std::any_of(rows.begin(), rows.end(), running)) {
    for (int64_t b = 0; b < B; ++b) {
      tokens.mutable_data_ptr<int64_t>()[b] = NextInput(rows[b], scripts[b]);
    }
    const at::Tensor logits = model.Logits(model.Hidden(tokens, forward)).contiguous();
    const float* data = logits.const_data_ptr<float>();
    for (int64_t b = 0; b < B; ++b) {
      Advance(scripts[b], data + b * V, o, &random, &rows[b], &answers[b]);
    }
  }
  return answers;
}

}  // namespace skein::trainer
