#include "server/token_log.h"

#include <algorithm>

#include "engine/base/check.h"

namespace skein::server {

void TokenLog::Append(const std::vector<engine::TokenEvent>& tokens) {
  for (const engine::TokenEvent& token : tokens) {
    tokens_.push_back({token.token, token.logprob,
                       static_cast<float>(absl::ToDoubleSeconds(token.latency)),
                       static_cast<int32_t>(token.top.size())});
    tops_.insert(tops_.end(), token.top.begin(), token.top.end());
  }
}

int64_t TokenLog::bytes() const {
  return static_cast<int64_t>(tokens_.size() * sizeof(Kept) +
                              tops_.size() * sizeof(kernels::TokenValue));
}

// A quarter more than asked for goes at once, so that a long answer does not move its tokens at
// each step.
void TokenLog::Trim(int64_t max_bytes, int64_t keep) {
  if (bytes() <= max_bytes) return;
  const int64_t goal = max_bytes - max_bytes / 4;
  int64_t left = bytes();
  size_t n = 0, tops = 0;
  v1::Delta dropped;
  while (n < tokens_.size() && left > goal && first_.next < keep) {
    const Kept& token = tokens_[n++];
    Show(token.token, &first_, &dropped);
    dropped.Clear();
    ++first_.next;
    tops += token.tops;
    left -= static_cast<int64_t>(sizeof(Kept) + token.tops * sizeof(kernels::TokenValue));
  }
  first_.top += static_cast<int64_t>(tops);
  tokens_.erase(tokens_.begin(), tokens_.begin() + static_cast<int64_t>(n));
  tops_.erase(tops_.begin(), tops_.begin() + static_cast<int64_t>(tops));
  if (tokens_.empty()) {
    tokens_ = {};  // gives the memory back
    tops_ = {};
  }
}

TokenLog::Cursor TokenLog::At(int64_t n) const {
  SKEIN_CHECK(n >= first() && n <= end());
  Cursor cursor = first_;
  v1::Delta skipped;
  for (; cursor.next < n; ++cursor.next) {
    const Kept& token = tokens_[cursor.next - first_.next];
    Show(token.token, &cursor, &skipped);
    skipped.Clear();
    cursor.top += token.tops;
  }
  return cursor;
}

void TokenLog::Show(int32_t token, Cursor* cursor, v1::Delta* delta) const {
  if (!output_.text) return;
  const absl::string_view bytes = tokenizer_->Bytes(token);
  if (output_.thinking == engine::Thinking::kOff) {
    cursor->utf8.Push(bytes, delta->mutable_text());
    return;
  }
  std::string text;
  cursor->utf8.Push(bytes, &text);
  cursor->thinking.Push(text, delta->mutable_reasoning(), delta->mutable_text());
}

void TokenLog::Read(Cursor* cursor, int64_t max_tokens, v1::Delta* delta) const {
  const int64_t until = std::min(end(), cursor->next + max_tokens);
  for (; cursor->next < until; ++cursor->next) {
    const Kept& token = tokens_[cursor->next - first_.next];
    Show(token.token, cursor, delta);
    if (output_.tokens) {
      const auto top = tops_.begin() + (cursor->top - first_.top);
      *delta->add_tokens() = ToProto(
          {token.token, token.logprob, absl::Seconds(token.latency), {top, top + token.tops}},
          *tokenizer_, output_);
    }
    cursor->top += token.tops;
  }
  delta->set_token_count(cursor->next);
}

void TokenLog::ReadRest(Cursor* cursor, v1::Delta* delta) const {
  if (output_.text) {
    std::string rest;
    cursor->utf8.Finish(&rest);
    cursor->thinking.Push(rest, delta->mutable_reasoning(), delta->mutable_text());
    cursor->thinking.Finish(delta->mutable_reasoning());
  }
  delta->set_token_count(cursor->next);
}

}  // namespace skein::server
