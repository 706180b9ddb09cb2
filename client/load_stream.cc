#include "client/load_stream.h"

#include <algorithm>
#include <utility>

#include "client/errors.h"

namespace skein::client {
namespace {

using Clock = Timers::Clock;
using std::chrono::duration;
using std::chrono::duration_cast;

// A Cancel on its way; owns itself.
struct CancelCall {
  grpc::ClientContext context;
  v1::CancelRequest request;
  v1::CancelResponse response;
};

}  // namespace

LoadStream::LoadStream(const LoadShared& shared, Connection* connection,
                       v1::GenerateRequest request, const RequestPlan& plan, Timers::Time intended,
                       Done done)
    : shared_(shared),
      connection_(connection),
      request_(std::move(request)),
      plan_(plan),
      done_(std::move(done)) {
  outcome_.intended = intended;
  outcome_.slow = plan.slow;
  outcome_.measured = intended >= shared.measure_from;
}

void LoadStream::Start() {
  shared_.stats->Started();
  outcome_.started = Clock::now();
  const double deadline = shared_.options->deadline;
  if (deadline > 0) {
    context_.set_deadline(
        std::chrono::system_clock::now() +
        duration_cast<std::chrono::system_clock::duration>(duration<double>(deadline)));
  }
  connection_->generation().async()->Generate(&context_, &request_, this);
  StartRead(&response_);
  StartCall();
}

void LoadStream::Cut() {
  cut_ = true;
  context_.TryCancel();
}

void LoadStream::OnReadDone(bool ok) {
  if (!ok) return;
  const Timers::Time now = Clock::now();
  const bool text = response_.has_delta();
  if (text) OnText(now);
  if (response_.has_started() || text) MaybeEnd();
  if (response_.has_finished()) {
    outcome_.reason = response_.finished().reason();
    outcome_.usage = response_.finished().usage();
    CountTokens(outcome_.usage.completion_tokens(), now);
  }
  if (!plan_.slow || !text) {
    StartRead(&response_);
    return;
  }
  // The hold keeps the call from ending while no read is under way.
  AddHold();
  const auto wait =
      duration_cast<Clock::duration>(duration<double>(1 / shared_.options->slow_rate));
  shared_.timers->At(now + wait, [this] {
    StartRead(&response_);
    RemoveHold();
  });
}

void LoadStream::OnText(Timers::Time now) {
  if (outcome_.messages++ == 0) {
    outcome_.first_text = now;
  } else if (outcome_.measured && !plan_.slow) {
    shared_.stats->Gap(now - last_text_);
  }
  last_text_ = now;
  CountTokens(response_.delta().token_count(), now);
}

void LoadStream::CountTokens(int64_t until_now, Timers::Time now) {
  const int64_t more = std::max<int64_t>(0, until_now - outcome_.tokens);
  outcome_.tokens += more;
  if (now >= shared_.measure_from && now < shared_.measure_to) outcome_.tokens_in_time += more;
}

// A message brings as many tokens as there are, on a busy machine many.
void LoadStream::MaybeEnd() {
  if (plan_.end == RequestPlan::End::kNormal || outcome_.ended_here) return;
  if (outcome_.tokens < plan_.end_after) return;
  outcome_.ended_here = true;
  plan_.end == RequestPlan::End::kCancel ? SendCancel() : context_.TryCancel();
}

void LoadStream::SendCancel() {
  auto* call = new CancelCall;
  call->request.set_request_id(request_.request_id());
  // The call holds a reference to the channel, so it may outlive this stream.
  connection_->generation().async()->Cancel(&call->context, &call->request, &call->response,
                                            [call](const grpc::Status&) { delete call; });
}

void LoadStream::OnDone(const grpc::Status& status) {
  outcome_.ended = Clock::now();
  outcome_.status = status;
  outcome_.error_reason = ReasonOf(status);
  outcome_.cut = cut_;
  // Nothing of this object is touched after it.
  shared_.timers->Soon([done = done_, outcome = outcome_] { done(outcome); });
}

}  // namespace skein::client
