#pragma once
// The sentences of the recall demo. {} stands for the value.

#include <string>
#include <vector>

namespace skein::trainer {

enum class ValueKind { kName, kNumber, kColour, kFood };

struct FactKind {
  ValueKind value;
  std::vector<std::string> statements, questions;
  std::string answer;
};

const std::vector<FactKind>& FactKinds();
const std::vector<std::string>& Colours();
const std::vector<std::string>& Foods();
// Questions that nobody can answer from the dialogue.
const std::vector<std::string>& OtherQuestions();

struct SmallTalk {
  std::string user, answer;
};
const std::vector<SmallTalk>& SmallTalks();

inline constexpr char kNoted[] = "Noted.";
inline constexpr char kUnknown[] = "I do not know.";

}  // namespace skein::trainer
