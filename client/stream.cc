#include "client/stream.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/base/check.h"

namespace skein::client {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::seconds kCancelTimeout{5};

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double Seconds(const google::protobuf::Duration& duration) {
  return duration.seconds() + duration.nanos() * 1e-9;
}

std::string NewRequestId() {
  std::random_device random;
  return absl::StrFormat("skein-%08x%08x", random(), random());
}

// Waits for Ctrl-C beside a running call. The constructor starts its thread, the destructor ends
// it.
class StopButton {
 public:
  StopButton(Connection& connection, grpc::ClientContext* call, std::string request_id,
             Interrupts* interrupts)
      : connection_(connection),
        call_(call),
        request_id_(std::move(request_id)),
        interrupts_(interrupts) {
    if (interrupts_ == nullptr) return;
    done_fd_ = eventfd(0, EFD_CLOEXEC);
    SKEIN_CHECK(done_fd_ >= 0);
    thread_ = std::thread([this] { Watch(); });
  }
  ~StopButton() {
    if (interrupts_ == nullptr) return;
    const uint64_t one = 1;
    SKEIN_CHECK(write(done_fd_, &one, sizeof(one)) == sizeof(one));
    thread_.join();
    close(done_fd_);
  }

 private:
  void Watch() {
    for (int presses = 0;;) {
      pollfd fds[2] = {{done_fd_, POLLIN, 0}, {interrupts_->fd(), POLLIN, 0}};
      if (poll(fds, 2, -1) < 0 && errno == EINTR) continue;
      if (fds[0].revents != 0) return;
      if (!interrupts_->Take()) continue;
      if (++presses > 1 || !Cancel()) call_->TryCancel();
    }
  }

  // Whether the server will end the stream.
  bool Cancel() {
    v1::CancelRequest request;
    request.set_request_id(request_id_);
    v1::CancelResponse response;
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kCancelTimeout);
    return connection_.generation().Cancel(&context, request, &response).ok() &&
           response.cancelled();
  }

  Connection& connection_;
  grpc::ClientContext* const call_;
  const std::string request_id_;
  Interrupts* const interrupts_;
  int done_fd_ = -1;
  std::thread thread_;
};

std::string WhyItEnded(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_LENGTH:
      return ", cut at max_tokens";
    case v1::FINISH_REASON_TIME:
      return ", cut at max_time";
    case v1::FINISH_REASON_CANCELLED:
      return ", cancelled";
    case v1::FINISH_REASON_DRAINED:
      return ", cut because the server is shutting down";
    default:
      return "";
  }
}

}  // namespace

grpc::Status RunGenerate(Connection& connection, v1::GenerateRequest request,
                         std::chrono::duration<double> deadline, Interrupts* interrupts,
                         const std::function<void(const v1::GenerateResponse&)>& on_response,
                         StreamResult* result) {
  if (request.request_id().empty()) request.set_request_id(NewRequestId());
  grpc::ClientContext context;
  if (deadline.count() > 0) {
    context.set_deadline(std::chrono::system_clock::now() +
                         std::chrono::duration_cast<std::chrono::system_clock::duration>(deadline));
  }
  const Clock::time_point start = Clock::now();
  if (interrupts != nullptr) interrupts->Take();  // what was pressed before is not about this call
  const auto reader = connection.generation().Generate(&context, request);
  grpc::Status status;
  {
    StopButton stop_button(connection, &context, request.request_id(), interrupts);
    v1::GenerateResponse response;
    while (reader->Read(&response)) {
      if (response.has_started()) result->started = response.started();
      if (response.has_finished()) result->finished = response.finished();
      if (response.has_delta() && !response.delta().text().empty()) {
        if (result->text.empty()) result->first_text_seconds = SecondsSince(start);
        result->text += response.delta().text();
      }
      on_response(response);
    }
    status = reader->Finish();
  }
  result->seconds = SecondsSince(start);
  if (!status.ok()) return status;
  if (!result->finished) {
    return grpc::Status(grpc::StatusCode::INTERNAL, "the stream ended without Finished");
  }
  // What was cancelled or out of time while it waited never started.
  if (!result->started) result->started.emplace();
  return status;
}

std::string Summary(const v1::Finished& finished, bool in_conversation) {
  const int64_t tokens = finished.usage().completion_tokens();
  std::string line = absl::StrCat(tokens, tokens == 1 ? " token" : " tokens");
  const double between = Seconds(finished.timings().mean_inter_token());
  if (between > 0) absl::StrAppendFormat(&line, ", %.1f tokens/s", 1 / between);
  const double first = Seconds(finished.timings().time_to_first_token());
  if (tokens > 0) absl::StrAppendFormat(&line, ", first after %.0f ms", first * 1e3);
  line += WhyItEnded(finished.reason());
  if (in_conversation && !finished.committed()) line += ", not kept";
  return line;
}

}  // namespace skein::client
