#pragma once
// A load run from its first session to its last: who starts when, on which connection, and when it
// is over. All of its state belongs to the timers' thread; others see the statistics and `over`.

#include <atomic>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "client/connection.h"
#include "client/load_plan.h"
#include "client/load_stats.h"
#include "client/load_stream.h"
#include "client/load_timers.h"

namespace skein::client {

class LoadRun {
 public:
  // `text`: the token ids that prompts are cut from. All three outlive the run.
  LoadRun(const LoadOptions& options, const std::vector<int32_t>& text,
          std::vector<std::unique_ptr<Connection>>* connections);
  // After Start: cuts what still runs and waits for it.
  ~LoadRun();

  // Once.
  void Start();
  // From any thread, after Start. No more sessions and turns; Cut also ends what runs.
  void Stop();
  void Cut();
  // Until it is over, at most `seconds`. Whether it is.
  bool WaitUntilOver(double seconds);

  const LoadStats& stats() const { return stats_; }
  double elapsed() const;           // seconds since the start of the run
  double measured_seconds() const;  // of the part that is measured, so far
  // Arrivals of an open loop that were due before the end and never started, because max_open ran.
  int64_t never_started() const { return never_started_.load(); }
  int64_t conversations_left() const { return conversations_left_.load(); }

 private:
  struct Session;
  using Time = Timers::Time;

  void Begin();
  void NextArrival();
  void StartSession(Time intended);
  void StartTurn(Session* session, Time intended);
  void TurnDone(Session* session, const RequestOutcome& outcome);
  void SessionDone(Session* session, Time ended, double pause);
  void DeleteConversation(const std::string& id, Connection* connection);
  void StopAdmitting();
  void CutAll();
  void CheckOver();
  v1::GenerateRequest RequestOf(Session* session, const RequestPlan& plan);
  bool admitting() const;

  const LoadOptions& options_;
  const std::vector<int32_t>& text_;
  std::vector<std::unique_ptr<Connection>>& connections_;
  const std::string name_;  // of this run, in the ids of requests and conversations

  LoadStats stats_;
  Time start_;
  LoadShared shared_;

  // Of the timers' thread.
  PoissonArrivals arrivals_;
  std::optional<Time> due_;  // an arrival that waits for room
  bool admitting_ = false;
  bool arrival_timer_ = false;
  int64_t sessions_ = 0, requests_ = 0, calls_ = 0;
  int64_t measured_ = 0;  // requests that are meant to start after the warm-up
  std::map<int64_t, std::unique_ptr<Session>> open_;  // by number

  std::atomic<int64_t> never_started_{0}, conversations_left_{0};
  mutable std::mutex mu_;
  std::condition_variable over_changed_;
  std::optional<Time> over_;  // guarded by mu_

  Timers timers_;  // last: what it runs uses all of the above
};

}  // namespace skein::client
