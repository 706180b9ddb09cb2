// Records of requests that ask for more than one answer: several sequences, the prompt's
// log-probabilities, thinking.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "server/request_record.h"
#include "tests/engine/fake_model.h"

namespace skein::server {
namespace {

// A client that takes everything at once.
class Reader final : public RecordReader {
 public:
  explicit Reader(std::shared_ptr<RequestRecord> record) : record_(std::move(record)) {}
  void OnReady() override {
    for (auto action = record_->Next(*this); action.kind != RequestRecord::Action::kNothing;
         action = record_->WriteDone(*this)) {
      const bool finishes = action.kind != RequestRecord::Action::kWrite;
      if (finishes) status = action.status;
      if (action.kind != RequestRecord::Action::kFinish) events.push_back(std::move(action.event));
      ended = ended || finishes;
      if (finishes) return;
    }
  }
  std::vector<v1::GenerateResponse> events;
  bool ended = false;
  absl::Status status;

 private:
  const std::shared_ptr<RequestRecord> record_;
};

struct Request {
  explicit Request(int32_t sequences, engine::Thinking thinking = engine::Thinking::kOff) {
    RequestSpec spec;
    spec.request_id = "r";
    spec.sequences = sequences;
    spec.output.thinking = thinking;
    spec.tokenizer = std::make_shared<engine::WordTokenizer>(std::vector<std::string>());
    record = std::make_shared<RequestRecord>(std::move(spec), [](auto) {});
    sinks = record->Begin([](bool) { return true; });
  }
  std::shared_ptr<Reader> Read(int64_t after = 0) {
    auto reader = std::make_shared<Reader>(record);
    EXPECT_TRUE(record->Attach(reader, after).ok());
    reader->OnReady();
    return reader;
  }
  void Say(int index, absl::string_view bytes) {
    std::vector<engine::TokenEvent> tokens;
    for (const char c : bytes) {
      tokens.emplace_back();
      tokens.back().token = 1 + static_cast<uint8_t>(c);
    }
    sinks[index]->OnOutput(std::move(tokens), "");
  }
  std::shared_ptr<RequestRecord> record;
  RequestRecord::Sinks sinks;
};

TEST(RecordSequences, AnErrorOfOneIsThatOnes) {
  Request r(3);
  const auto reader = r.Read();
  for (int i = 0; i < 3; ++i) r.sinks[i]->OnStarted({});
  r.sinks[1]->OnError(absl::InternalError("broken"));
  r.Say(2, "x");
  EXPECT_FALSE(reader->ended);
  r.sinks[2]->OnFinished({});
  r.sinks[0]->OnFinished({});
  ASSERT_TRUE(reader->ended);
  EXPECT_TRUE(reader->status.ok());
  std::vector<int> started(3), finished(3);
  for (const auto& event : reader->events) {
    if (event.has_started()) ++started[event.started().index()];
    if (!event.has_finished()) continue;
    const v1::Finished& end = event.finished();
    ++finished[end.index()];
    EXPECT_EQ(end.reason() == v1::FINISH_REASON_ERROR, end.index() == 1);
    EXPECT_EQ(end.error().message(), end.index() == 1 ? "broken" : "");
  }
  EXPECT_EQ(started, std::vector<int>(3, 1));
  EXPECT_EQ(finished, std::vector<int>(3, 1));
}

TEST(RecordSequences, WhenAllFailTheStreamDoes) {
  Request r(2);
  const auto reader = r.Read();
  r.sinks[0]->OnError(absl::InternalError("broken"));
  r.sinks[1]->OnError(absl::InternalError("too"));
  ASSERT_TRUE(reader->ended);
  EXPECT_EQ(reader->status.code(), absl::StatusCode::kInternal);
}

TEST(RecordSequences, PromptLogprobsComeOnceAndBeforeTheAnswer) {
  Request r(1);
  engine::PromptLogprobsEvent event;
  event.tokens = {{66, std::numeric_limits<float>::quiet_NaN()}, {67, -1.5f}};
  r.sinks[0]->OnPromptLogprobs(event);
  event.first = 2;
  event.tokens.assign(1000, {68, -0.25f});
  r.sinks[0]->OnPromptLogprobs(event);
  r.Say(0, "xy");
  r.sinks[0]->OnFinished({});
  const auto reader = r.Read();
  ASSERT_TRUE(reader->ended);
  int64_t seen = 0;
  bool answer = false;
  for (const auto& e : reader->events) {
    answer = answer || e.has_delta();
    if (!e.has_prompt_logprobs()) continue;
    EXPECT_FALSE(answer);
    EXPECT_EQ(e.prompt_logprobs().first(), seen);
    for (const v1::Token& token : e.prompt_logprobs().tokens()) {
      EXPECT_EQ(token.has_logprob(), seen > 0);
      if (seen == 1) {
        EXPECT_EQ(token.logprob(), -1.5f);
        EXPECT_EQ(token.bytes(), "B");
      }
      ++seen;
    }
  }
  EXPECT_EQ(seen, 1002);
  // Who goes on in the answer has seen them.
  const auto later = r.Read(1);
  for (const auto& e : later->events) EXPECT_FALSE(e.has_prompt_logprobs());
}

// Whatever token a reader comes after, also inside of the tag.
TEST(RecordSequences, WhatIsThoughtComesApartAfterAnyToken) {
  const std::string answer = ">\nHm</th</think>\nYes \xE2\x82\xAC";
  Request r(1, engine::Thinking::kOn);
  std::vector<std::pair<std::string, std::string>> seen(answer.size() + 1);  // after n tokens
  const auto first = r.Read();
  for (size_t n = 0; n < answer.size(); ++n) {
    r.Say(0, absl::string_view(answer).substr(n, 1));
    seen[n + 1] = seen[0];
    for (const auto& event : first->events) {
      seen[n + 1].first += event.delta().reasoning();
      seen[n + 1].second += event.delta().text();
    }
  }
  r.sinks[0]->OnFinished({});
  const std::pair<std::string, std::string> whole("\nHm</th", "\nYes \xE2\x82\xAC");
  EXPECT_EQ(seen.back(), whole);
  for (size_t n = 0; n <= answer.size(); ++n) {
    std::pair<std::string, std::string> parts = seen[n];
    const auto reader = r.Read(static_cast<int64_t>(n));
    for (const auto& event : reader->events) {
      parts.first += event.delta().reasoning();
      parts.second += event.delta().text();
    }
    EXPECT_EQ(parts, whole) << n;
  }
}

}  // namespace
}  // namespace skein::server
