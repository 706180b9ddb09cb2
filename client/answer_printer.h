#pragma once
// The events of one Generate as text: on a terminal what is thought is grey and comes before what
// is said; elsewhere there is nothing but what is said. Of several sequences each is printed when
// it has ended, under a heading.

#include <string>
#include <vector>

#include "client/terminal.h"
#include "skein/v1/generation.pb.h"

namespace skein::client {

namespace v1 = ::skein::v1;

class AnswerPrinter {
 public:
  // `tokens`: a line for each token in place of the text.
  AnswerPrinter(Terminal* terminal, int32_t num_sequences, bool tokens)
      : terminal_(terminal), several_(num_sequences > 1), tokens_(tokens) {
    sequences_.resize(several_ ? num_sequences : 1);
  }

  void Print(const v1::GenerateResponse& response);
  // After the last event: ends the line.
  void End();

 private:
  struct Sequence {
    v1::Started started;
    std::string thought, said;
    std::vector<v1::Token> tokens;
  };
  void PrintDelta(const v1::Delta& delta);
  void PrintSequence(const Sequence& sequence, const v1::Finished& finished);

  Terminal* const terminal_;
  const bool several_, tokens_;
  std::vector<Sequence> sequences_;
  bool thinks_ = false;   // the last thing printed was thought
  bool in_line_ = false;  // and its line has not ended
};

// id, piece, log-probability and the most probable tokens at its place.
void PrintToken(const v1::Token& token, Terminal* terminal);

}  // namespace skein::client
