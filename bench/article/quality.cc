#include "bench/article/quality.h"

#include <ATen/ops/argmax.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cstdio>
#include <memory>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/article/transformer.h"
#include "bench/ceilings.h"
#include "engine/base/check.h"
#include "kernels/torch_ops.h"
#include "trainer/demo_data.h"
#include "trainer/evaluate.h"
#include "trainer/models/rwkv7.h"
#include "trainer/optimizer.h"
#include "trainer/schedule.h"
#include "trainer/task.h"

namespace skein::article {
namespace {

using at::Tensor;
using trainer::Batch;

constexpr int64_t kHeadSize = 64;             // of RWKV-7
constexpr int64_t kTransformerHeadSize = 32;  // nanoGPT's at this width: more heads learn faster

using bench::Now;

struct Compute {
  bool bf16 = false;
  std::string description;
};

// What both models are to the table.
class Learner {
 public:
  virtual ~Learner() = default;
  virtual Tensor Hidden(const Tensor& tokens) const = 0;
  virtual const Tensor& head() const = 0;
  virtual trainer::Parameters& parameters() = 0;
};

class RwkvLearner final : public Learner {
 public:
  RwkvLearner(const engine::ModelConfig& sizes, bool bf16) : model_(sizes, bf16) {
    model_.Initialize(1);
  }
  Tensor Hidden(const Tensor& tokens) const override { return model_.Hidden(tokens, {}); }
  const Tensor& head() const override { return model_.head(); }
  trainer::Parameters& parameters() override { return model_.parameters(); }

 private:
  trainer::Rwkv7 model_;
};

class TransformerLearner final : public Learner {
 public:
  TransformerLearner(const TransformerSizes& sizes, bool bf16) : model_(sizes, bf16, 1) {}
  Tensor Hidden(const Tensor& tokens) const override { return model_.Hidden(tokens); }
  const Tensor& head() const override { return model_.head(); }
  trainer::Parameters& parameters() override { return model_.parameters(); }

 private:
  Transformer model_;
};

struct Shape {
  int64_t L, C, V, T;
  bool bf16;
};

Shape ShapeOf(const trainer::Config& config, const trainer::Task& task, bool bf16) {
  return {config.model.layers, config.model.width, task.V, config.train.context, bf16};
}

std::unique_ptr<Learner> MakeLearner(bool rwkv, const Shape& s) {
  trainer::ModelOptions options;
  options.layers = s.L;
  options.width = s.C;
  options.head_size = kHeadSize;
  auto model = std::make_unique<RwkvLearner>(trainer::Rwkv7::Sizes(options, s.V), s.bf16);
  if (rwkv) return model;
  // The position embedding counts here: it is learnt, and T rows are few.
  const int64_t wanted = model->parameters().count() - s.T * s.C;
  return std::make_unique<TransformerLearner>(
      TransformerSizes::Matching(wanted, s.L, s.C, s.C / kTransformerHeadSize, s.V, s.T), s.bf16);
}

std::pair<Tensor, double> Loss(const Learner& model, const Batch& batch, bool bf16) {
  const Tensor hidden = model.Hidden(batch.tokens);
  std::optional<Tensor> weights;
  if (batch.weights.defined()) weights = batch.weights;
  const auto [loss, sum] =
      kernels::HeadCrossEntropy(hidden.reshape({-1, hidden.size(-1)}), model.head(), batch.labels,
                                weights, 0, batch.weight_sum, batch.weight_sum, bf16);
  return {loss, sum.item<double>()};
}

double ValidationLoss(const Learner& model, const std::vector<Batch>& batches, bool bf16) {
  c10::AutoGradMode off(false);
  double sum = 0, weight = 0;
  for (const Batch& batch : batches) {
    sum += Loss(model, batch, bf16).second;
    weight += batch.weight_sum;
  }
  return sum / weight;
}

// The best time of a step, of forward, backward and update.
double StepSeconds(Learner& model, const trainer::Task& task, const trainer::TrainConfig& t,
                   bool bf16, double budget) {
  trainer::Optimizer optimizer(&model.parameters(), t);
  const Batch batch = task.source->Get(0, t.batch);
  const auto step = [&] {
    Loss(model, batch, bf16).first.backward();
    optimizer.Step(t.lr, optimizer.GradientNorm());
  };
  return bench::Measure(budget, step).best;
}

// The type of products in which a model trains faster here, each being asked itself.
Compute FasterCompute(bool rwkv, const trainer::Config& config, const trainer::Task& task,
                      double budget) {
  double seconds[2];
  for (const bool bf16 : {false, true}) {
    const auto model = MakeLearner(rwkv, ShapeOf(config, task, bf16));
    seconds[bf16] = StepSeconds(*model, task, config.train, bf16, budget);
  }
  const bool bf16 = seconds[1] < seconds[0];
  return {bf16, absl::StrFormat("%s (a step: fp32 %.1f ms, bf16 %.1f ms)", bf16 ? "bf16" : "fp32",
                                seconds[0] * 1e3, seconds[1] * 1e3)};
}

// One model's training on one task; `validation` may be empty.
std::vector<CurvePoint> Train(Learner& model, const trainer::Task& task,
                              const trainer::Config& config, const std::vector<Batch>& validation,
                              int64_t evaluations, bool bf16) {
  const trainer::TrainConfig& t = config.train;
  trainer::Optimizer optimizer(&model.parameters(), t);
  const trainer::Schedule schedule{t.lr, t.lr_final, t.warmup, t.steps};
  std::vector<CurvePoint> curve;
  double seconds = 0;
  const auto point = [&](int64_t step) {
    CurvePoint p{step * t.batch * t.context, seconds, 0};
    if (!validation.empty()) p.loss = ValidationLoss(model, validation, bf16);
    curve.push_back(p);
  };
  if (!validation.empty()) point(0);
  for (int64_t step = 0; step < t.steps; ++step) {
    const double start = Now();
    const Batch batch = task.source->Get(step * t.batch, t.batch);
    Loss(model, batch, bf16).first.backward();
    optimizer.Step(schedule.At(step), optimizer.GradientNorm());
    seconds += Now() - start;
    const bool last = step + 1 == t.steps;
    if (last ||
        (!validation.empty() && (step + 1) * evaluations / t.steps > step * evaluations / t.steps))
      point(step + 1);
  }
  return curve;
}

// A row of tokens and the ones of them that must be the most probable ones.
struct Question {
  std::vector<int64_t> tokens;
  int64_t begin = 0, end = 0;
  bool repeated = false;
};

// Whether each question's tokens are what a greedy reader would have written. All read T tokens at
// most, from the beginning.
std::vector<bool> Ask(const Learner& model, const std::vector<Question>& questions, int64_t T) {
  constexpr int64_t kRows = 32;
  c10::AutoGradMode off(false);
  std::vector<bool> right;
  for (size_t first = 0; first < questions.size(); first += kRows) {
    const auto B = static_cast<int64_t>(std::min<size_t>(kRows, questions.size() - first));
    Tensor tokens = at::zeros({B, T}, at::kLong);
    int64_t* p = tokens.mutable_data_ptr<int64_t>();
    for (int64_t b = 0; b < B; ++b) {
      const std::vector<int64_t>& row = questions[first + b].tokens;
      SKEIN_CHECK(static_cast<int64_t>(row.size()) <= T);
      std::copy(row.begin(), row.end(), p + b * T);
    }
    const Tensor best = at::argmax(at::linear(model.Hidden(tokens), model.head()), -1).contiguous();
    const int64_t* guess = best.const_data_ptr<int64_t>();  // [B, T]: of the token after each
    for (int64_t b = 0; b < B; ++b) {
      const Question& q = questions[first + b];
      bool good = true;
      for (int64_t i = q.begin; i < q.end; ++i) good &= guess[b * T + i - 1] == q.tokens[i];
      right.push_back(good);
    }
  }
  return right;
}

// LAMBADA-like: passages of the validation text that end with a word of at least four letters. The
// reader knows that it ends there: the letters count, not what comes after them.
std::vector<Question> LastWords(const engine::Tokenizer& tokenizer,
                                const trainer::TokenStream& text, int64_t T, int64_t wanted) {
  std::vector<int32_t> tokens(static_cast<size_t>(text.size()));
  text.Read(0, text.size(), tokens.data());
  const auto letter = [&](int64_t i) {
    const absl::string_view bytes = tokenizer.Bytes(tokens[i]);
    return bytes.size() == 1 && absl::ascii_isalpha(static_cast<unsigned char>(bytes[0]));
  };
  std::vector<Question> all;
  for (int64_t begin = T; begin < text.size();) {
    int64_t end = begin;
    while (end < text.size() && letter(end)) ++end;
    if (end - begin >= 4 && end - begin < T / 2 && !letter(begin - 1)) {
      Question q;
      const int64_t from = end - T;
      q.tokens.assign(tokens.begin() + from, tokens.begin() + end);
      q.begin = begin - from;
      q.end = T;
      const auto passage_end = q.tokens.begin() + q.begin;
      q.repeated =
          std::search(q.tokens.begin(), passage_end, passage_end, q.tokens.end()) != passage_end;
      all.push_back(std::move(q));
    }
    begin = std::max(begin + 1, end);
  }
  const auto n = static_cast<int64_t>(all.size());
  if (n <= wanted) return all;
  std::vector<Question> spread;
  for (int64_t i = 0; i < wanted; ++i) spread.push_back(all[i * n / wanted]);
  return spread;
}

// Questions of held-out dialogues whose answers end within T tokens; the dialogue before them is
// given as it should have been.
std::vector<Question> RecallQuestions(const engine::Tokenizer& tokenizer, int64_t T,
                                      int64_t dialogues) {
  std::vector<Question> questions;
  for (int64_t d = 0; d < dialogues; ++d) {
    trainer::DemoDialogue dialogue(trainer::Random(99, static_cast<uint64_t>(d)),
                                   /*held_out=*/true);
    std::vector<int32_t> tokens;
    while (true) {
      const trainer::DemoTurn turn = dialogue.Next();
      tokenizer.Encode(absl::StrCat("User: ", turn.user, "\n\nAssistant:"), &tokens);
      Question q;
      q.begin = static_cast<int64_t>(tokens.size());
      tokenizer.Encode(absl::StrCat(" ", turn.answer), &tokens);
      q.end = static_cast<int64_t>(tokens.size());
      if (q.end > T) break;
      q.tokens.assign(tokens.begin(), tokens.end());
      if (turn.asks && trainer::DemoHeldOut(turn.value)) questions.push_back(std::move(q));
      tokenizer.Encode("\n\n", &tokens);
    }
  }
  return questions;
}

trainer::Config TextConfig(const QualityOptions& options) {
  trainer::Config config;
  config.model.layers = 4;
  config.model.width = 128;
  config.data.train = options.text;
  config.data.tokenizer = "bytes";
  config.data.validation_fraction = 0.1;
  config.train.context = 128;
  config.train.batch = 12;
  config.train.steps = options.text_steps;
  config.train.warmup = 20;
  config.evaluate.max_windows = options.windows;
  return config;
}

trainer::Config DemoConfig(const QualityOptions& options) {
  trainer::Config config;
  config.model.layers = 3;
  config.model.width = 128;
  config.data.kind = "recall-demo";
  config.train.context = 128;
  config.train.batch = 8;
  config.train.steps = options.demo_steps;
  config.train.warmup = 20;
  return config;
}

void SetRate(double lr, trainer::Config* config) {
  config->train.lr = lr;
  config->train.lr_final = lr / 20;
}

void CountRight(const std::vector<Question>& questions, const std::vector<bool>& right,
                Accuracy* all, Accuracy* repeated) {
  for (size_t i = 0; i < questions.size(); ++i) {
    ++all->asked;
    all->right += right[i];
    if (repeated == nullptr || !questions[i].repeated) continue;
    ++repeated->asked;
    repeated->right += right[i];
  }
}

void LearnText(bool rwkv, trainer::Config config, const trainer::Task& task,
               const QualityOptions& options, bool bf16, Learned* out) {
  SetRate(rwkv ? options.rwkv_lr : options.transformer_lr, &config);
  const int64_t T = config.train.context;
  const auto model = MakeLearner(rwkv, ShapeOf(config, task, bf16));
  out->parameters = model->parameters().count();
  out->curve = Train(*model, task, config, task.Validation(config, false, config.train.batch),
                     options.evaluations, bf16);
  const std::vector<Question> words =
      LastWords(*task.tokenizer, task.validation_tokens, T, options.passages);
  CountRight(words, Ask(*model, words, T), &out->last_word, &out->last_word_repeated);
}

void LearnDemo(bool rwkv, trainer::Config config, const trainer::Task& task,
               const QualityOptions& options, bool bf16, Learned* out) {
  SetRate(rwkv ? options.rwkv_lr : options.transformer_lr, &config);
  const int64_t T = config.train.context;
  const auto model = MakeLearner(rwkv, ShapeOf(config, task, bf16));
  out->demo_parameters = model->parameters().count();
  out->demo_seconds = Train(*model, task, config, {}, 1, bf16).back().seconds;
  const std::vector<Question> questions = RecallQuestions(*task.tokenizer, T, options.dialogues);
  CountRight(questions, Ask(*model, questions, T), &out->recall, nullptr);
}

}  // namespace

absl::StatusOr<Quality> CompareQuality(const QualityOptions& options) {
  const trainer::Config text_config = TextConfig(options), demo_config = DemoConfig(options);
  SKEIN_ASSIGN_OR_RETURN(const trainer::Task text, trainer::MakeTask(text_config, nullptr));
  SKEIN_ASSIGN_OR_RETURN(const trainer::Task demo, trainer::MakeTask(demo_config, nullptr));
  if (text.validation_tokens.size() < 4 * text_config.train.context) {
    return absl::InvalidArgumentError(absl::StrCat(options.text, " is too short to validate on"));
  }
  Quality quality;
  quality.description = absl::StrFormat(
      "%d layers, width %d, bytes, context %d, %d tokens of %s (%d for the recall demo, %d layers)",
      text_config.model.layers, text_config.model.width, text_config.train.context,
      text_config.train.steps * text_config.train.batch * text_config.train.context, options.text,
      demo_config.train.steps * demo_config.train.batch * demo_config.train.context,
      demo_config.model.layers);
  for (const bool rwkv : {true, false}) {
    Learned learned;
    learned.name = rwkv ? "Skein, RWKV-7" : "transformer";
    const Compute compute = FasterCompute(rwkv, text_config, text, options.trial_seconds);
    learned.compute = compute.description;
    std::fprintf(stderr, "training %s on the text\n", learned.name.c_str());
    LearnText(rwkv, text_config, text, options, compute.bf16, &learned);
    std::fprintf(stderr, "training %s on the recall demo\n", learned.name.c_str());
    LearnDemo(rwkv, demo_config, demo, options, compute.bf16, &learned);
    quality.models.push_back(std::move(learned));
  }
  return quality;
}

}  // namespace skein::article
