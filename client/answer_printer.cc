#include "client/answer_printer.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/format.h"

namespace skein::client {

void PrintToken(const v1::Token& token, Terminal* terminal) {
  std::string line = absl::StrFormat("%6d  %s", token.id(), Quoted(token.bytes()));
  if (token.has_logprob()) absl::StrAppendFormat(&line, "  %.4f", token.logprob());
  for (const v1::TopToken& top : token.top()) {
    absl::StrAppendFormat(&line, "  [%d %s %.4f]", top.id(), Quoted(top.bytes()), top.logprob());
  }
  terminal->Line(line);
}

void AnswerPrinter::Print(const v1::GenerateResponse& response) {
  if (response.has_queued()) {
    terminal_->Transient(
        absl::StrCat("waiting, ", response.queued().position(), " before this one"));
  } else if (response.has_progress()) {
    terminal_->Transient(absl::StrCat("reading ", response.progress().prefill_done(), " of ",
                                      response.progress().prefill_total(), " tokens"));
  } else if (response.has_prompt_logprobs()) {
    for (const v1::Token& token : response.prompt_logprobs().tokens()) PrintToken(token, terminal_);
  } else if (response.has_delta() && !several_) {
    PrintDelta(response.delta());
  }
  if (!several_) return;
  if (response.has_started())
    sequences_.at(response.started().index()).started = response.started();
  if (response.has_delta()) {
    const v1::Delta& delta = response.delta();
    Sequence& sequence = sequences_.at(delta.index());
    sequence.thought += delta.reasoning();
    sequence.said += delta.text();
    sequence.tokens.insert(sequence.tokens.end(), delta.tokens().begin(), delta.tokens().end());
  }
  if (response.has_finished()) {
    PrintSequence(sequences_.at(response.finished().index()), response.finished());
  }
}

void AnswerPrinter::PrintDelta(const v1::Delta& delta) {
  if (tokens_) {
    for (const v1::Token& token : delta.tokens()) PrintToken(token, terminal_);
    return;
  }
  if (!delta.reasoning().empty() && terminal_->interactive()) {
    terminal_->Faint(delta.reasoning());
    thinks_ = true;
    in_line_ = !absl::EndsWith(delta.reasoning(), "\n");
  }
  if (delta.text().empty()) return;
  if (thinks_ && in_line_) terminal_->Newline();
  thinks_ = false;
  terminal_->Text(delta.text());
  in_line_ = !absl::EndsWith(delta.text(), "\n");
}

void AnswerPrinter::PrintSequence(const Sequence& sequence, const v1::Finished& finished) {
  std::string heading = absl::StrCat("--- ", finished.index(), ": seed ", sequence.started.seed(),
                                     ", ", FinishReasonName(finished.reason()));
  if (finished.committed()) {
    absl::StrAppend(&heading, ", conversation ", sequence.started.conversation_id(), " version ",
                    finished.version());
  }
  if (finished.has_error()) absl::StrAppend(&heading, ": ", finished.error().message());
  terminal_->Line(heading);
  if (tokens_) {
    for (const v1::Token& token : sequence.tokens) PrintToken(token, terminal_);
    return;
  }
  if (terminal_->interactive() && !sequence.thought.empty()) terminal_->Dim(sequence.thought);
  if (!sequence.said.empty()) terminal_->Line(sequence.said);
}

void AnswerPrinter::End() {
  if (in_line_) terminal_->Newline();
  in_line_ = false;
}

}  // namespace skein::client
