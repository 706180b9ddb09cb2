// What is remembered of requests: one record and its readers, and the window of all of them; alone
// and with many threads that do everything at once.

#include "server/request_record.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/log.h"
#include "server/request_log.h"
#include "server/status.h"
#include "tests/engine/fake_model.h"

namespace skein::server {
namespace {

using Action = RequestRecord::Action;
using Stage = RequestRecord::Stage;

std::shared_ptr<const engine::Tokenizer> Bytes() {
  static const auto tokenizer =
      std::make_shared<engine::WordTokenizer>(std::vector<std::string>{"\xE2\x82\xAC", "word"});
  return tokenizer;
}

RequestSpec Spec(const std::string& id = "r") {
  RequestSpec spec;
  spec.request_id = id;
  spec.output.tokens = true;
  spec.tokenizer = Bytes();
  return spec;
}

std::vector<engine::TokenEvent> Tokens(absl::string_view bytes) {
  std::vector<engine::TokenEvent> out;
  for (char c : bytes) {
    engine::TokenEvent token;
    token.token = 1 + static_cast<uint8_t>(c);
    token.logprob = -0.5f;
    out.push_back(token);
  }
  return out;
}

// A client whose transport is as fast as the test says: it writes when Carry is called.
class Reader final : public RecordReader, public std::enable_shared_from_this<Reader> {
 public:
  explicit Reader(std::shared_ptr<RequestRecord> record) : record_(std::move(record)) {}

  void OnReady() override { Apply(record_->Next(*this)); }
  // The writes in flight are done, and those that follow, at most n.
  void Carry(int n = 1000) {
    while (n-- > 0 && writing_.exchange(false)) Apply(record_->WriteDone(*this));
  }
  // A reset connection: the write in flight fails, and the cancellation comes behind it.
  void Break() {
    writing_ = false;
    Apply(record_->Gone(*this, absl::CancelledError("gone"), true, /*in_write=*/true));
    Leave();
  }
  void Leave(bool end_turn = true) {
    Apply(record_->Gone(*this, absl::CancelledError("gone"), end_turn));
  }

  std::vector<v1::GenerateResponse> events;
  std::string text;
  std::vector<int32_t> ids;
  int64_t count = 0;
  int finishes = 0;
  absl::Status status;

 private:
  void Apply(Action action) {
    if (action.kind == Action::kNothing) return;
    ASSERT_EQ(finishes, 0) << "told something after its finish";
    if (action.kind != Action::kFinish) {
      ASSERT_FALSE(writing_.load()) << "two writes in flight";
      text += action.event.delta().text();
      for (const v1::Token& token : action.event.delta().tokens()) ids.push_back(token.id());
      if (action.event.has_delta()) count = action.event.delta().token_count();
      events.push_back(std::move(action.event));
    } else {
      ASSERT_FALSE(writing_.load()) << "finished during a write";
    }
    if (action.kind != Action::kWrite) {
      ++finishes;
      status = action.status;
    } else {
      writing_ = true;
    }
  }

  const std::shared_ptr<RequestRecord> record_;
  std::atomic<bool> writing_{false};
};

// One record and the calls that it makes.
struct Fixture {
  explicit Fixture(RequestSpec spec = Spec())
      : record(std::make_shared<RequestRecord>(std::move(spec), [this](auto) { ++ends; })) {
    sinks = record->Begin([this](bool by_client) {
      (by_client ? cancelled : disconnected)++;
      return true;
    });
  }
  // A record and its reader hold one another until the end, which not every test comes to.
  ~Fixture() {
    for (const std::weak_ptr<Reader>& reader : readers) {
      if (const auto still = reader.lock()) still->Leave();
    }
  }
  std::shared_ptr<Reader> Read(int64_t after = 0) {
    auto reader = std::make_shared<Reader>(record);
    readers.push_back(reader);
    const absl::Status status = record->Attach(reader, after);
    EXPECT_TRUE(status.ok()) << status;
    reader->OnReady();
    return reader;
  }
  void Started() { sinks[0]->OnStarted({}); }
  void Say(absl::string_view bytes) { sinks[0]->OnOutput(Tokens(bytes), "not used"); }
  void Finish(bool committed = false, engine::FinishReason reason = engine::FinishReason::kLength) {
    engine::FinishedEvent event;
    event.reason = reason;
    event.committed = committed;
    sinks[0]->OnFinished(event);
  }

  int ends = 0, cancelled = 0, disconnected = 0;
  std::shared_ptr<RequestRecord> record;
  RequestRecord::Sinks sinks;
  std::vector<std::weak_ptr<Reader>> readers;
};

TEST(Record, AReaderSeesAllInOrderAndOneFinish) {
  Fixture f;
  auto reader = f.Read();
  f.sinks[0]->OnQueued(3);
  f.sinks[0]->OnQueued(2);
  f.sinks[0]->OnQueued(1);
  f.Started();
  f.sinks[0]->OnProgress({1, 9});
  f.sinks[0]->OnProgress({9, 9});
  f.Say("a");
  f.Say("bc");
  reader->Carry();
  f.Say("d");
  f.Finish();
  reader->Carry();
  std::vector<int> kinds;
  for (const auto& event : reader->events) kinds.push_back(event.event_case());
  using R = v1::GenerateResponse;
  // Of positions and progress only the newest matters; what piles up leaves as one.
  EXPECT_EQ(kinds, (std::vector<int>{R::kQueued, R::kQueued, R::kStarted, R::kProgress, R::kDelta,
                                     R::kDelta, R::kFinished}));
  EXPECT_EQ(reader->events[1].queued().position(), 1);
  EXPECT_EQ(reader->events[3].progress().prefill_done(), 9);
  EXPECT_EQ(reader->text, "abcd");
  EXPECT_EQ(reader->count, 4);
  EXPECT_EQ(reader->finishes, 1);
  EXPECT_TRUE(reader->status.ok());
  EXPECT_EQ(f.ends, 1);
}

// Any place in the answer, also inside of a code point, and whenever the reader comes.
TEST(Record, TextGoesOnExactlyAfterAnyToken) {
  const std::string bytes = "a\xE2\x82\xAC\xFF\xC3\xA9\xE2\x82z\xF0\x9F\x98\x80\xE2\x82";
  Fixture whole;
  auto reference = whole.Read();
  for (char c : bytes) {
    whole.Say(absl::string_view(&c, 1));
    reference->Carry();
  }
  whole.Finish();
  reference->Carry();
  ASSERT_TRUE(engine::IsValidUtf8(reference->text));
  for (size_t seen = 0; seen <= bytes.size(); ++seen) {
    for (size_t there = seen; there <= bytes.size(); ++there) {
      Fixture f;
      auto first = f.Read();
      for (size_t i = 0; i < seen; ++i) {
        f.Say(bytes.substr(i, 1));
        first->Carry();
      }
      f.Say(bytes.substr(seen, there - seen));  // in flight when the connection goes
      auto second = f.Read(static_cast<int64_t>(seen));
      f.Say(bytes.substr(there));
      f.Finish();
      second->Carry();
      EXPECT_EQ(second->ids.size(), bytes.size() - seen);
      EXPECT_TRUE(engine::IsValidUtf8(second->text));
      std::string text;
      for (const auto& event : first->events) {
        if (event.has_delta() && event.delta().token_count() <= static_cast<int64_t>(seen)) {
          text += event.delta().text();
        }
      }
      EXPECT_EQ(text + second->text, reference->text) << seen << " " << there;
    }
  }
}

TEST(Record, ANewerReaderTakesThePlaceOfTheOlder) {
  Fixture f;
  auto first = f.Read();
  f.Say("ab");  // in flight
  auto second = f.Read();
  EXPECT_EQ(first->finishes, 0) << "a write is in flight";
  first->Carry();
  EXPECT_EQ(first->finishes, 1);
  EXPECT_TRUE(absl::IsAborted(first->status));
  EXPECT_EQ(base::Reason(first->status), "REPLACED");
  first->Leave();
  EXPECT_EQ(f.disconnected, 0) << "it is not the one that counts any more";
  f.Say("c");
  f.Finish();
  second->Carry();
  EXPECT_EQ(second->text, "abc");
  EXPECT_TRUE(second->status.ok());
}

TEST(Record, AnEndedOneHasAsManyReadersAsCome) {
  Fixture f;
  f.Say("abc");
  f.Finish();
  auto first = f.Read(), second = f.Read(1);
  first->Carry();
  second->Carry();
  EXPECT_EQ(first->text, "abc");
  EXPECT_EQ(second->text, "bc");
  EXPECT_TRUE(first->status.ok() && second->status.ok());
}

TEST(Record, CancelledWhenItsReaderIsGone) {
  for (const bool engine_ends_it : {false, true}) {
    Fixture f;
    auto reader = f.Read();
    f.Say("a");
    reader->Leave(/*end_turn=*/!engine_ends_it);
    EXPECT_EQ(f.disconnected, engine_ends_it ? 0 : 1);
    EXPECT_EQ(f.record->stage(), Stage::kEnding);
    int then = 0;
    EXPECT_TRUE(f.record->WhenEnded([&] { ++then; }));
    f.sinks[0]->OnError(absl::CancelledError("the client went away"));
    EXPECT_EQ(then, 1);
    EXPECT_EQ(f.record->stage(), Stage::kUncommitted);
    EXPECT_FALSE(f.record->WhenEnded([&] { ++then; }));
    reader->Carry();
    EXPECT_EQ(reader->finishes, 1);
    EXPECT_TRUE(f.record->unread());
    EXPECT_FALSE(f.record->Cancel()) << "it has ended";
  }
}

TEST(Record, AFailedWriteEndsTheTurnOnce) {
  Fixture f;
  auto reader = f.Read();
  f.Say("a");  // in flight
  reader->Break();
  EXPECT_EQ(f.disconnected, 1);
  EXPECT_EQ(reader->finishes, 1);
  EXPECT_EQ(f.record->stage(), Stage::kEnding);
}

TEST(Record, FinishGoesOnWithoutAReader) {
  RequestSpec spec = Spec();
  spec.finish = true;
  spec.limits = {.bytes = 160, .reader_tokens = 4, .reader_age = absl::Seconds(60)};
  Fixture f(spec);
  auto reader = f.Read();
  f.Say("abcdefgh");
  f.Say("ijklm");
  EXPECT_FALSE(f.sinks[0]->Writable());
  reader->Leave();
  EXPECT_EQ(f.disconnected, 0);
  EXPECT_EQ(f.record->stage(), Stage::kRunning);
  for (int i = 0; i < 1000; ++i) {
    EXPECT_TRUE(f.sinks[0]->Writable()) << "nobody is slow";
    f.Say("x");
    EXPECT_LE(f.record->bytes(), 160);
  }
  // The first tokens are gone: that is said, with where one can begin.
  auto late = std::make_shared<Reader>(f.record);
  const absl::Status status = f.record->Attach(late, 0);
  EXPECT_EQ(base::Reason(status), "TOKENS_NOT_KEPT");
  f.Finish(/*committed=*/true);
  auto last = f.Read(1010);
  last->Carry();
  EXPECT_EQ(last->text, "xxx");
  EXPECT_TRUE(last->status.ok());
  EXPECT_EQ(f.record->stage(), Stage::kKept);
}

TEST(Record, ASlowReaderPausesAndWithFinishLosesItsStream) {
  for (const bool finish : {false, true}) {
    RequestSpec spec = Spec();
    spec.finish = finish;
    spec.limits = {.bytes = 1 << 20, .reader_tokens = 2, .reader_age = absl::Seconds(1)};
    Fixture f(spec);
    auto reader = f.Read();
    f.Say("a");
    EXPECT_TRUE(f.sinks[0]->Writable()) << "in flight does not count";
    f.Say("bc");
    EXPECT_FALSE(f.sinks[0]->Writable());
    reader->Carry();
    EXPECT_TRUE(f.sinks[0]->Writable());
    f.Say("d");
    f.Say("ef");
    EXPECT_FALSE(f.sinks[0]->Writable());
    absl::SleepFor(absl::Milliseconds(1010));
    EXPECT_EQ(f.sinks[0]->Writable(), finish) << "without FINISH the engine ends it";
    if (!finish) continue;
    f.Say("g");
    EXPECT_TRUE(f.record->unread());
    reader->Carry();
    EXPECT_EQ(base::Reason(reader->status), "SLOW_READER");
    f.Finish();
    EXPECT_EQ(f.disconnected, 0);
  }
}

// The window may be full while the last tokens are on their way to the client that asked.
TEST(Record, WhatItsOwnStreamHasNotSentIsNotDropped) {
  Fixture f;
  auto reader = f.Read();
  f.Say(std::string(1000, 'x'));
  f.Finish();
  f.record->DropTokens();
  auto late = f.Read(1000);  // another one begins after the end
  late->Carry();
  EXPECT_TRUE(late->status.ok()) << late->status;
  reader->Carry();
  EXPECT_TRUE(reader->status.ok()) << reader->status;
  EXPECT_EQ(reader->text, std::string(1000, 'x'));
  EXPECT_EQ(f.record->bytes(), 0);
}

TEST(Record, AStreamThatIsGoneKeepsNothing) {
  Fixture f;
  auto reader = f.Read();
  f.Say(std::string(1000, 'x'));
  f.Finish();
  f.record->DropTokens();
  EXPECT_GT(f.record->bytes(), 0);
  reader->Break();
  EXPECT_EQ(f.record->bytes(), 0);
}

TEST(Record, TokensDroppedUnderALaterReaderAreNotSkipped) {
  Fixture f;
  f.Say(std::string(1000, 'x'));
  f.Finish();
  auto reader = f.Read();  // one message in flight
  f.record->DropTokens();
  EXPECT_EQ(f.record->bytes(), 0);
  reader->Carry();
  EXPECT_EQ(base::Reason(reader->status), "TOKENS_NOT_KEPT");
}

TEST(Record, ACommitWithAnErrorCounts) {
  Fixture f;
  f.Say("a");
  f.sinks[0]->OnError(
      engine::WithCommittedVersion(absl::CancelledError("the client went away"), 7));
  EXPECT_EQ(f.record->stage(), Stage::kKept);
  auto reader = f.Read();
  reader->Carry();
  EXPECT_TRUE(absl::IsCancelled(reader->status));
  EXPECT_EQ(reader->text, "a");
}

TEST(Record, EndsThatCount) {
  using R = engine::FinishReason;
  for (const auto& [reason, committed, stage] :
       std::vector<std::tuple<R, bool, Stage>>{{R::kStop, false, Stage::kKept},
                                               {R::kLength, false, Stage::kKept},
                                               {R::kTime, false, Stage::kKept},
                                               {R::kCancelled, false, Stage::kUncommitted},
                                               {R::kCancelled, true, Stage::kKept},
                                               {R::kDrained, false, Stage::kUncommitted},
                                               {R::kDrained, true, Stage::kKept}}) {
    Fixture f;
    f.Finish(committed, reason);
    EXPECT_EQ(f.record->stage(), stage);
  }
}

// ---- the window

std::shared_ptr<RequestRecord> OpenNew(RequestLog* log, RequestSpec spec) {
  auto opened = log->Open(std::move(spec));
  EXPECT_TRUE(opened.ok() && opened->how == RequestLog::Opened::kNew);
  return opened->record;
}

void End(const std::shared_ptr<RequestRecord>& record, int tokens, bool committed = true) {
  const auto sinks = record->Begin([](bool) { return true; });
  sinks[0]->OnOutput(Tokens(std::string(tokens, 'x')), "");
  engine::FinishedEvent event;
  event.committed = committed;
  event.reason = committed ? engine::FinishReason::kLength : engine::FinishReason::kCancelled;
  sinks[0]->OnFinished(event);
}

TEST(Log, JoinsReplaysRefusesAndRunsAgain) {
  RequestLog log({});
  const auto record = OpenNew(&log, Spec("a"));
  EXPECT_EQ(log.Open(Spec("a"))->how, RequestLog::Opened::kJoined);
  RequestSpec other = Spec("a");
  other.fingerprint[0] = 1;
  EXPECT_TRUE(absl::IsAlreadyExists(log.Open(other).status()));
  other.tenant = "t";  // whose ids are its own
  const auto theirs = OpenNew(&log, other);
  EXPECT_EQ(log.gauges().running, 2);
  End(record, 5, /*committed=*/false);
  EXPECT_TRUE(absl::IsAlreadyExists(log.Open([] {
                                         RequestSpec spec = Spec("a");
                                         spec.fingerprint[0] = 1;
                                         return spec;
                                       }())
                                        .status()));
  const auto again = OpenNew(&log, Spec("a"));
  EXPECT_NE(again, record);
  End(again, 5);
  const auto joined = log.Open(Spec("a"));
  EXPECT_EQ(joined->how, RequestLog::Opened::kJoined);
  EXPECT_EQ(joined->record, again);
  log.Refuse(theirs, absl::UnavailableError("draining"));
  EXPECT_EQ(base::Reason(log.Find("t", "a").status()), "REQUEST_NOT_FOUND");
  EXPECT_TRUE(absl::IsNotFound(log.Find("t", "a").status()));
  EXPECT_EQ(log.gauges().running, 0);
}

TEST(Log, ARefusalReachesWhoeverJoinedMeanwhile) {
  RequestLog log({});
  const auto record = OpenNew(&log, Spec("a"));
  auto reader = std::make_shared<Reader>(record);
  ASSERT_TRUE(record->Attach(reader, 0).ok());
  reader->OnReady();
  log.Refuse(record, absl::ResourceExhaustedError("full"));
  EXPECT_TRUE(absl::IsResourceExhausted(reader->status));
  OpenNew(&log, Spec("a"));
}

TEST(Log, IsBoundedByCountBytesAndAge) {
  RequestLog log({.kept = 4, .kept_bytes = 1600, .kept_age = absl::Seconds(2)});
  for (int i = 0; i < 10; ++i) {
    RequestSpec spec = Spec(absl::StrCat("r", i));
    spec.tenant = "big";
    End(OpenNew(&log, spec), 50);  // 800 bytes
    EXPECT_LE(log.gauges().kept, 4);
    EXPECT_LE(log.gauges().kept_bytes, 1600);
  }
  // Another tenant's place is its own, and the bytes are taken from the one that has most.
  End(OpenNew(&log, Spec("small")), 10);
  EXPECT_EQ(log.gauges().kept, 5);
  EXPECT_EQ((*log.Find("", "small"))->bytes(), 160);
  EXPECT_EQ((*log.Find("big", "r8"))->bytes(), 0) << "how it ended stays known";
  EXPECT_EQ((*log.Find("big", "r9"))->bytes(), 800);
  absl::SleepFor(absl::Milliseconds(2010));
  log.Expire();
  EXPECT_EQ(log.gauges().kept, 0);
  EXPECT_EQ(log.gauges().kept_bytes, 0);
  EXPECT_FALSE(log.Find("", "small").ok());
}

// ---- threads

// An engine in a thread: tokens, then an end of some kind, or what it is asked for.
class FakeRun {
 public:
  FakeRun(std::shared_ptr<RequestRecord> record, unsigned seed) {
    auto asked = std::make_shared<std::atomic<int>>(0);
    auto sinks = record->Begin([asked](bool by_client) {
      int none = 0;
      asked->compare_exchange_strong(none, by_client ? 1 : 2);
      return true;
    });
    thread_ = std::thread([sinks = std::move(sinks), asked, seed] {
      std::mt19937 random(seed);
      sinks[0]->OnStarted({});
      const int tokens = random() % 200;
      for (int i = 0; i < tokens && *asked == 0; ++i) {
        while (!sinks[0]->Writable() && *asked == 0) std::this_thread::yield();
        sinks[0]->OnOutput(Tokens("\xE2\x82\xAC"), "");
      }
      if (*asked == 2) return sinks[0]->OnError(absl::CancelledError("gone"));
      engine::FinishedEvent event;
      event.reason = *asked == 1 ? engine::FinishReason::kCancelled : engine::FinishReason::kLength;
      sinks[0]->OnFinished(event);
    });
  }
  ~FakeRun() { thread_.join(); }

 private:
  std::thread thread_;
};

// A stream with a transport of its own thread.
class ThreadedReader final : public RecordReader {
 public:
  explicit ThreadedReader(std::shared_ptr<RequestRecord> record) : record_(std::move(record)) {}
  void OnReady() override { Apply(record_->Next(*this)); }
  // Carries writes until the finish; leaves after so many.
  void Run(int leave_after) {
    int writes = 0;
    while (finishes_ == 0) {
      if (done_.exchange(false)) {
        writing_ = false;
        Apply(record_->WriteDone(*this));
        if (++writes == leave_after)
          Apply(record_->Gone(*this, absl::CancelledError("left"), true));
      } else {
        std::this_thread::yield();
      }
    }
    EXPECT_EQ(finishes_, 1);
    EXPECT_TRUE(engine::IsValidUtf8(text_));
  }

 private:
  void Apply(const Action& action) {
    if (action.kind == Action::kNothing) return;
    if (action.kind != Action::kFinish) {
      EXPECT_FALSE(writing_.exchange(true)) << "two writes in flight";
      text_ += action.event.delta().text();
      for (const v1::Token& token : action.event.delta().tokens()) {
        EXPECT_NE(token.id(), 0);
        ++tokens_;
      }
      if (action.event.has_delta()) {
        EXPECT_EQ(action.event.delta().token_count(), tokens_) << "tokens lost or sent twice";
      }
    }
    if (action.kind == Action::kWrite) {
      done_ = true;
    } else {
      EXPECT_EQ(finishes_.fetch_add(1), 0);
    }
  }

  const std::shared_ptr<RequestRecord> record_;
  std::atomic<bool> writing_{false}, done_{false};
  std::atomic<int> finishes_{0};
  std::string text_;    // ordered by writing_
  int64_t tokens_ = 0;  // as above
};

TEST(LogThreads, SubmitJoinCancelAttachAndLeaveAtRandom) {
  InitLog({.level = "warning", .format = "text"});  // once, before other threads log
  RequestLog log({.kept = 8, .kept_bytes = 4000, .kept_age = absl::Milliseconds(5)});
  std::atomic<int> runs{0};
  const auto client = [&](unsigned seed) {
    std::mt19937 random(seed);
    std::vector<std::unique_ptr<FakeRun>> mine;
    // On a fast machine 150 rounds are over before much of what is kept has expired to run again.
    for (int round = 0; round < 150 || runs <= 50; ++round) {
      RequestSpec spec = Spec(absl::StrCat("id", random() % 6));
      spec.tenant = random() % 2 == 0 ? "" : "t";
      spec.limits = {.bytes = 1 << 14, .reader_tokens = 8, .reader_age = absl::Seconds(60)};
      spec.finish = spec.request_id < "id3";  // the same for all of one id
      if (random() % 8 == 0) {
        if (const auto found = log.Find(spec.tenant, spec.request_id); found.ok()) {
          (*found)->Cancel();
        }
        log.Expire();
        continue;
      }
      const auto opened = log.Open(spec);
      ASSERT_TRUE(opened.ok());
      if (opened->how == RequestLog::Opened::kEnding) {
        std::atomic<bool> ended{false};
        if (opened->record->WhenEnded([&] { ended = true; })) {
          while (!ended) std::this_thread::yield();
        }
        continue;
      }
      if (opened->how == RequestLog::Opened::kNew) {
        if (random() % 10 == 0) {
          log.Refuse(opened->record, absl::UnavailableError("full"));
          continue;
        }
        mine.push_back(std::make_unique<FakeRun>(opened->record, random()));
        ++runs;
      }
      auto reader = std::make_shared<ThreadedReader>(opened->record);
      if (!opened->record->Attach(reader, 0).ok()) continue;  // no longer kept
      reader->OnReady();
      reader->Run(random() % 3 == 0 ? random() % 20 + 1 : 1 << 30);
      if (mine.size() > 16) mine.erase(mine.begin());
    }
  };
  std::vector<std::thread> clients;
  for (unsigned i = 0; i < 6; ++i) clients.emplace_back(client, i + 1);
  // Whoever lost its reader to a newer one is waited for by it; what is left unread ends by itself.
  for (std::thread& thread : clients) thread.join();
  EXPECT_EQ(log.gauges().running, 0);
  EXPECT_GT(runs, 50);
  absl::SleepFor(absl::Milliseconds(10));
  log.Expire();
  EXPECT_EQ(log.gauges().kept, 0);
  EXPECT_EQ(log.gauges().kept_bytes, 0);
}

}  // namespace
}  // namespace skein::server
