#include "trainer/demo_data.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "engine/base/check.h"
#include "engine/base/file.h"
#include "trainer/dataset.h"
#include "trainer/demo_text.h"
#include "trainer/generate.h"

namespace skein::trainer {
namespace {

constexpr char kConsonants[] = "bdfghklmnprstv";  // 14 x 5 = 70 syllables
constexpr char kVowels[] = "aeiou";
constexpr size_t kExchangesShown = 4;

// Loss weights of the three kinds of text.
constexpr float kUserWeight = 0.02f, kWordsWeight = 0.3f, kValueWeight = 1.0f;

template <typename T>
const T& OneOf(const std::vector<T>& list, Random* random) {
  return list[random->Below(list.size())];
}

std::string SyllableName(Random* random) {
  std::string name;
  for (int i = 0, n = random->Chance(0.3) ? 3 : 2; i < n; ++i) {
    name += kConsonants[random->Below(14)];
    name += kVowels[random->Below(5)];
  }
  if (random->Chance(0.3)) name += "nrlsktmd"[random->Below(8)];
  name[0] = absl::ascii_toupper(static_cast<unsigned char>(name[0]));
  return name;
}

std::string LetterName(Random* random) {
  std::string name;
  for (uint64_t i = 0, n = 3 + random->Below(4); i < n; ++i)
    name += static_cast<char>('a' + random->Below(26));
  name[0] = absl::ascii_toupper(static_cast<unsigned char>(name[0]));
  return name;
}

std::string AnyName(Random* random) {
  return random->Chance(0.12) ? LetterName(random) : SyllableName(random);
}

// Takes away the marks at the end.
void StripMarks(std::string* text) {
  while (!text->empty() && (text->back() == '.' || text->back() == '?' || text->back() == '!'))
    text->pop_back();
}

// A turn's tokens, cut as the server cuts them: the person's text with "Assistant:", the answer,
// the separator.
void AppendTurn(const engine::Tokenizer& tokenizer, const DemoTurn& turn, WeightedTokens* out) {
  out->Append(tokenizer, absl::StrCat("User: ", turn.user, "\n\nAssistant:"), kUserWeight);
  const std::string answer = " " + turn.answer;
  const size_t begin = out->tokens.size();
  out->Append(tokenizer, answer, kWordsWeight);
  const size_t value_at = turn.value.empty() ? std::string::npos : answer.rfind(turn.value);
  size_t byte = 0;
  for (size_t i = begin; i < out->tokens.size(); ++i) {
    const size_t end = byte + tokenizer.Bytes(out->tokens[i]).size();
    // The value's tokens, and the one after them: where it ends must be learnt too.
    if (value_at != std::string::npos && end > value_at) out->weights[i] = kValueWeight;
    if (turn.answer == kUnknown) out->weights[i] = kValueWeight / 2;
    byte = end;
  }
  out->Append(tokenizer, "\n\n", kWordsWeight);
}

std::vector<int32_t> TurnPrompt(const engine::Tokenizer& tokenizer, const std::string& user,
                                bool first) {
  std::vector<int32_t> tokens;
  if (!first) tokenizer.Encode("\n\n", &tokens);
  tokenizer.Encode(absl::StrCat("User: ", user, "\n\nAssistant:"), &tokens);
  return tokens;
}

}  // namespace

bool DemoHeldOut(const std::string& value) {
  const std::string lower = absl::AsciiStrToLower(value);
  return base::Hash64(lower.data(), lower.size()) % 10 == 0;
}

DemoDialogue::DemoDialogue(Random random, bool held_out)
    : random_(random),
      held_out_(held_out),
      lower_case_(random_.Chance(0.1)),
      unpunctuated_(random_.Chance(0.15)),
      facts_wanted_(2 + static_cast<int>(random_.Below(3))) {
  SKEIN_CHECK(FactKinds().size() == kKinds);
}

// Begins like another value of this dialogue, when there is one: so that an answer has to go by
// what was asked and not by how it began.
std::string DemoDialogue::LikeOneSaid(std::string name) {
  std::vector<std::string> said;
  for (const std::string& value : known_) {
    if (value.size() >= 4 && absl::ascii_isalpha(static_cast<unsigned char>(value[0])))
      said.push_back(value);
  }
  if (said.empty()) return name;
  name.replace(0, 2, OneOf(said, &random_).substr(0, 2));
  name[0] = absl::ascii_toupper(static_cast<unsigned char>(name[0]));
  return name;
}

std::string DemoDialogue::NewValue(int kind) {
  const ValueKind value = FactKinds()[static_cast<size_t>(kind)].value;
  const bool listed = random_.Chance(0.85);
  for (;;) {
    std::string text;
    if (value == ValueKind::kColour && listed) return OneOf(Colours(), &random_);
    if (value == ValueKind::kFood && listed) return OneOf(Foods(), &random_);
    if (value == ValueKind::kNumber) {
      for (uint64_t i = 0, n = random_.Chance(0.9) ? 4 : 1 + random_.Below(4); i < n; ++i) {
        text += static_cast<char>('0' + random_.Below(10));
      }
    } else {
      text = AnyName(&random_);
      if (random_.Chance(0.3)) text = LikeOneSaid(text);
      if (value != ValueKind::kName || lower_case_) text = absl::AsciiStrToLower(text);
    }
    if (DemoHeldOut(text) == held_out_) return text;
  }
}

std::string DemoDialogue::AsTyped(std::string text) {
  if (lower_case_) absl::AsciiStrToLower(&text);
  if (unpunctuated_) StripMarks(&text);
  return text;
}

std::string DemoDialogue::Statement(int kind) {
  const FactKind& fact = FactKinds()[static_cast<size_t>(kind)];
  known_[kind] = NewValue(kind);
  return absl::StrReplaceAll(OneOf(fact.statements, &random_), {{"{}", known_[kind]}});
}

DemoTurn DemoDialogue::Tell() {
  const int kind = static_cast<int>(random_.Below(kKinds));
  std::string text = Statement(kind);
  if (random_.Chance(0.1)) {
    const int other = static_cast<int>((kind + 1 + random_.Below(kKinds - 1)) % kKinds);
    StripMarks(&text);
    std::string second = Statement(other);
    if (second[0] != 'I') second[0] = absl::ascii_tolower(static_cast<unsigned char>(second[0]));
    absl::StrAppend(&text, " and ", second);
  }
  return {AsTyped(text), kNoted, "", false};
}

DemoTurn DemoDialogue::Ask(int kind) {
  const FactKind& fact = FactKinds()[static_cast<size_t>(kind)];
  const std::string question = AsTyped(OneOf(fact.questions, &random_));
  if (known_[kind].empty()) return {question, kUnknown, "", false};
  return {question, absl::StrReplaceAll(fact.answer, {{"{}", known_[kind]}}), known_[kind], true};
}

DemoTurn DemoDialogue::AskUnknown() {
  if (random_.Chance(0.25))
    return {AsTyped(OneOf(OtherQuestions(), &random_)), kUnknown, "", false};
  return Ask(static_cast<int>(random_.Below(kKinds)));
}

DemoTurn DemoDialogue::Next() {
  std::vector<int> said;
  for (int kind = 0; kind < kKinds; ++kind) {
    if (!known_[kind].empty()) said.push_back(kind);
  }
  if (random_.Chance(0.03)) {
    const SmallTalk& talk = OneOf(SmallTalks(), &random_);
    return {AsTyped(talk.user), talk.answer, "", false};
  }
  const bool more = static_cast<int>(said.size()) < facts_wanted_;
  if (random_.Chance(more ? 0.6 : 0.08)) return Tell();
  if (said.empty() || random_.Chance(0.12)) return AskUnknown();
  return Ask(OneOf(said, &random_));
}

DemoSource::DemoSource(const engine::Tokenizer& tokenizer, int64_t T, uint64_t seed, bool held_out)
    : tokenizer_(tokenizer), T_(T), seed_(seed), held_out_(held_out) {}

Row DemoSource::MakeRow(int64_t index) const {
  DemoDialogue dialogue(Random(seed_, static_cast<uint64_t>(index)), held_out_);
  WeightedTokens text;
  while (static_cast<int64_t>(text.tokens.size()) <= T_)
    AppendTurn(tokenizer_, dialogue.Next(), &text);
  text.tokens.resize(static_cast<size_t>(T_) + 1);
  text.weights.resize(static_cast<size_t>(T_) + 1);
  return {std::move(text.tokens), std::move(text.weights)};
}

Batch DemoSource::Get(int64_t first, int64_t B) const {
  std::vector<Row> rows;
  for (int64_t b = 0; b < B; ++b) rows.push_back(MakeRow(first + b));
  return MakeBatch(rows, T_, false);
}

RecallResult TestRecall(const Rwkv7& model, const engine::Tokenizer& tokenizer, uint64_t seed,
                        int64_t dialogues, int64_t turns) {
  std::vector<Script> scripts(static_cast<size_t>(dialogues));
  std::vector<std::vector<DemoTurn>> expected(scripts.size());
  for (size_t d = 0; d < scripts.size(); ++d) {
    DemoDialogue dialogue(Random(seed, d), /*held_out=*/true);
    for (int64_t t = 0; t < turns; ++t) {
      expected[d].push_back(dialogue.Next());
      scripts[d].push_back(TurnPrompt(tokenizer, expected[d].back().user, t == 0));
    }
  }
  GenerateOptions options;
  options.max_tokens = 24;
  options.vocab = tokenizer.vocab_size();
  options.stop_tokens = tokenizer.Encode("\n\n");
  const std::vector<Script> answers = Generate(model, scripts, options);
  RecallResult result;
  std::vector<std::string> right, wrong;
  for (size_t d = 0; d < scripts.size(); ++d) {
    for (size_t t = 0; t < expected[d].size(); ++t) {
      const DemoTurn& turn = expected[d][t];
      if (!turn.asks || !DemoHeldOut(turn.value)) continue;
      const std::string answer = tokenizer.Decode(answers[d][t]);
      const bool good = answer == " " + turn.answer;
      ++result.asked;
      result.right += good;
      (good ? right : wrong)
          .push_back(absl::StrCat(turn.user, answer, good ? "" : "   (it is " + turn.value + ")"));
    }
  }
  wrong.insert(wrong.end(), right.begin(), right.end());
  wrong.resize(std::min<size_t>(wrong.size(), kExchangesShown));
  result.exchanges = std::move(wrong);
  return result;
}

}  // namespace skein::trainer
