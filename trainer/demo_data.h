#pragma once
// Data of the recall demo: dialogues made on the fly, in which a person says things about
// themselves and asks for them later, and the small World-format vocabulary that makes them short.
// One value in ten (by hash) never occurs in training; the recall test asks for those.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/tokenizer.h"
#include "trainer/batches.h"
#include "trainer/models/rwkv7.h"
#include "trainer/random.h"

namespace skein::trainer {

struct DemoTurn {
  std::string user, answer;
  std::string value;  // the part of the answer that comes from the dialogue; empty: none
  bool asks = false;  // a question about something that was said
};

// World-format text: the 256 bytes, the words of the dialogues with their leading space, syllables,
// turn marks.
std::string DemoVocabulary();
std::vector<std::string> DemoExamples();  // things to type in `skein chat`
std::string DemoDescription();
bool DemoHeldOut(const std::string& value);

// Endless turns of one dialogue. held_out: all names and numbers are held-out ones; else none is.
class DemoDialogue {
 public:
  DemoDialogue(Random random, bool held_out);
  DemoTurn Next();

 private:
  static constexpr int kKinds = 7;
  DemoTurn Tell();
  DemoTurn Ask(int kind);
  DemoTurn AskUnknown();
  std::string Statement(int kind);
  std::string NewValue(int kind);
  std::string LikeOneSaid(std::string name);
  std::string AsTyped(std::string text);

  Random random_;
  const bool held_out_;
  bool lower_case_, unpunctuated_;  // how this person types
  int facts_wanted_;
  std::string known_[kKinds];  // empty: not said
};

// Dialogues as training rows: what the person says weighs little, the fixed words of answers more,
// values most.
class DemoSource final : public BatchSource {
 public:
  // `tokenizer` outlives the source.
  DemoSource(const engine::Tokenizer& tokenizer, int64_t T, uint64_t seed, bool held_out);
  Batch Get(int64_t first, int64_t B) const override;

 private:
  Row MakeRow(int64_t index) const;
  const engine::Tokenizer& tokenizer_;
  const int64_t T_;
  const uint64_t seed_;
  const bool held_out_;
};

struct RecallResult {
  int64_t asked = 0, right = 0;        // questions about held-out values
  std::vector<std::string> exchanges;  // a few questions with their answers, wrong ones first
  double rate() const {
    return asked > 0 ? static_cast<double>(right) / static_cast<double>(asked) : 0;
  }
};

// Greedy answers over `dialogues` held-out dialogues of `turns` turns, fed turn by turn as the
// server does.
RecallResult TestRecall(const Rwkv7& model, const engine::Tokenizer& tokenizer, uint64_t seed,
                        int64_t dialogues, int64_t turns);

}  // namespace skein::trainer
