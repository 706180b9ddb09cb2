#include "client/load_run.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/errors.h"

namespace skein::client {
namespace {

using Clock = Timers::Clock;
using Time = Timers::Time;

// A closed loop must not hammer a server that refuses and does not say for how long.
constexpr double kPauseAfterFailure = 0.1;

Clock::duration Seconds(double seconds) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

double SecondsBetween(Time from, Time to) {
  return std::chrono::duration<double>(to - from).count();
}

std::string NewRunName() {
  std::random_device random;
  return absl::StrFormat("load-%08x", random());
}

}  // namespace

// One user's visit, from its first turn to its last.
struct LoadRun::Session {
  Session(const LoadOptions& options, int64_t index) : plan(options, index) {}
  SessionPlan plan;
  Connection* connection = nullptr;
  std::string conversation;  // empty: stateless
  int64_t number = 0, turns_done = 0;
  std::unique_ptr<LoadStream> stream;  // while a turn runs
};

LoadRun::LoadRun(const LoadOptions& options, const std::vector<int32_t>& text,
                 std::vector<std::unique_ptr<Connection>>* connections)
    : options_(options),
      text_(text),
      connections_(*connections),
      name_(NewRunName()),
      arrivals_(options.open_loop() ? options.rate : 1, options.seed) {}

LoadRun::~LoadRun() {
  Cut();
  while (!WaitUntilOver(1)) {
  }
}

void LoadRun::Start() {
  start_ = Clock::now();
  const Time end = start_ + Seconds(options_.warm_up + options_.duration);
  shared_ = {&options_, &stats_, &timers_, start_ + Seconds(options_.warm_up), end};
  timers_.Soon([this] { Begin(); });
  timers_.At(end, [this] {
    StopAdmitting();
    timers_.At(Clock::now() + Seconds(options_.grace), [this] { CutAll(); });
  });
}

void LoadRun::Begin() {
  admitting_ = true;
  if (options_.open_loop()) {
    due_ = start_ + Seconds(arrivals_.Next());
    NextArrival();
    return;
  }
  for (int64_t user = 0; user < options_.users; ++user) StartSession(Clock::now());
}

bool LoadRun::admitting() const {
  return admitting_ && (options_.requests == 0 || measured_ < options_.requests);
}

// Starts what is due. While max_open sessions run nothing starts, and the schedule does not move:
// an arrival that comes late has waited from its own time on. The schedule ends with the measured
// time, however late its last part is looked at.
void LoadRun::NextArrival() {
  while (admitting() && *due_ <= Clock::now() && *due_ < shared_.measure_to &&
         static_cast<int64_t>(open_.size()) < options_.max_open) {
    StartSession(*due_);
    due_ = start_ + Seconds(arrivals_.Next());
  }
  if (!admitting() || arrival_timer_ || *due_ <= Clock::now()) return;
  arrival_timer_ = true;
  timers_.At(*due_, [this] {
    arrival_timer_ = false;
    NextArrival();
  });
}

void LoadRun::StartSession(Time intended) {
  if (!admitting()) return;
  const int64_t number = sessions_++;
  Session& session =
      *open_.emplace(number, std::make_unique<Session>(options_, number)).first->second;
  session.number = number;
  session.connection = connections_[number % connections_.size()].get();
  if (session.plan.in_conversation()) session.conversation = absl::StrCat(name_, "-c", number);
  StartTurn(&session, intended);
}

v1::GenerateRequest LoadRun::RequestOf(Session* session, const RequestPlan& plan) {
  v1::GenerateRequest request = options_.request;
  request.set_request_id(absl::StrCat(name_, "-r", requests_));
  request.set_conversation_id(session->conversation);
  request.set_create_if_missing(!session->conversation.empty() && session->turns_done == 0);
  session->plan.AddPrompt(text_, plan.prompt, request.mutable_token_ids());
  request.mutable_stopping()->set_max_tokens(static_cast<int32_t>(plan.output));
  request.mutable_stopping()->set_ignore_eos(true);
  return request;
}

void LoadRun::StartTurn(Session* session, Time intended) {
  ++requests_;
  measured_ += intended >= shared_.measure_from;
  const RequestPlan plan = session->plan.NextRequest();
  session->stream = std::make_unique<LoadStream>(
      shared_, session->connection, RequestOf(session, plan), plan, intended,
      [this, session](const RequestOutcome& outcome) { TurnDone(session, outcome); });
  session->stream->Start();
  if (options_.requests > 0 && measured_ >= options_.requests) StopAdmitting();
}

void LoadRun::TurnDone(Session* session, const RequestOutcome& o) {
  session->stream.reset();
  stats_.Ended(o);
  ++session->turns_done;
  const bool failed = !o.status.ok() && !o.ended_here;
  double pause = session->plan.NextThinkSeconds();
  if (failed) pause = std::max({pause, RetrySecondsOf(o.status), kPauseAfterFailure});
  if (failed || session->turns_done >= session->plan.turns() || !admitting()) {
    SessionDone(session, o.ended, pause);
    return;
  }
  const Time next = o.ended + Seconds(pause);
  timers_.At(next, [this, number = session->number, next] {
    const auto it = open_.find(number);
    if (it != open_.end()) StartTurn(it->second.get(), next);
  });
}

void LoadRun::SessionDone(Session* session, Time ended, double pause) {
  if (!session->conversation.empty() && !options_.keep)
    DeleteConversation(session->conversation, session->connection);
  open_.erase(session->number);
  if (options_.open_loop()) {
    if (due_.has_value()) NextArrival();
  } else if (admitting()) {
    // The same user's next visit.
    const Time next = ended + Seconds(pause);
    timers_.At(next, [this, next] { StartSession(next); });
  }
  CheckOver();
}

void LoadRun::DeleteConversation(const std::string& id, Connection* connection) {
  struct Call {
    grpc::ClientContext context;
    v1::DeleteConversationRequest request;
    v1::DeleteConversationResponse response;
  };
  auto* call = new Call;
  call->request.set_id(id);
  call->context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
  ++calls_;
  connection->conversations().async()->Delete(
      &call->context, &call->request, &call->response, [this, call](const grpc::Status& status) {
        // NOT_FOUND: no turn was committed, or its time to live is over.
        const bool left = !status.ok() && status.error_code() != grpc::StatusCode::NOT_FOUND;
        delete call;
        timers_.Soon([this, left] {
          conversations_left_ += left;
          --calls_;
          CheckOver();
        });
      });
}

// ---- the end

void LoadRun::Stop() {
  timers_.Soon([this] { StopAdmitting(); });
}

void LoadRun::Cut() {
  timers_.Soon([this] {
    StopAdmitting();
    CutAll();
  });
}

void LoadRun::StopAdmitting() {
  if (admitting() && due_.has_value()) {
    const Time end = std::min(Clock::now(), shared_.measure_to);
    for (; *due_ < end; due_ = start_ + Seconds(arrivals_.Next())) ++never_started_;
  }
  admitting_ = false;
  // Those that think would only wake up to leave.
  std::vector<Session*> idle;
  for (const auto& [number, session] : open_) {
    if (session->stream == nullptr) idle.push_back(session.get());
  }
  for (Session* session : idle) SessionDone(session, Clock::now(), 0);
  CheckOver();
}

void LoadRun::CutAll() {
  for (const auto& [number, session] : open_) {
    if (session->stream != nullptr) session->stream->Cut();
  }
}

void LoadRun::CheckOver() {
  if (admitting_ || !open_.empty() || calls_ > 0) return;
  const std::lock_guard lock(mu_);
  if (!over_.has_value()) over_ = Clock::now();
  over_changed_.notify_all();
}

bool LoadRun::WaitUntilOver(double seconds) {
  std::unique_lock lock(mu_);
  return over_changed_.wait_for(lock, Seconds(seconds), [this] { return over_.has_value(); });
}

double LoadRun::elapsed() const { return SecondsBetween(start_, Clock::now()); }

double LoadRun::measured_seconds() const {
  const std::lock_guard lock(mu_);
  const Time end = std::min(over_.value_or(Clock::now()), shared_.measure_to);
  return std::max(0.0, SecondsBetween(shared_.measure_from, end));
}

}  // namespace skein::client
