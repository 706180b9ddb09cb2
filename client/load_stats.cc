#include "client/load_stats.h"

#include "absl/strings/str_cat.h"
#include "client/errors.h"
#include "client/format.h"

namespace skein::client {
namespace {

// A server that is not ours may say anything as its reason.
constexpr size_t kMostCodes = 100;

bool IsRefusal(const RequestOutcome& o) {
  return o.messages == 0 && (o.status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED ||
                             o.status.error_code() == grpc::StatusCode::UNAVAILABLE ||
                             o.status.error_code() == grpc::StatusCode::ABORTED);
}

std::string CodeOf(const RequestOutcome& o) {
  const std::string code = CodeName(o.status.error_code());
  return o.error_reason.empty() || o.error_reason == code ? code
                                                          : absl::StrCat(code, " ", o.error_reason);
}

}  // namespace

void LoadStats::Ended(const RequestOutcome& o) {
  open.fetch_sub(1);
  tokens_in_time += o.tokens_in_time;
  if (!o.measured) return;
  ++started;
  lag.Record(o.started - o.intended);
  if (o.cut) {
    ++cut;
    return;
  }
  (o.status.ok() || o.ended_here ? ok : failed) += 1;
  ended_here += o.ended_here;
  slow += o.slow;
  prompt_tokens += o.usage.prompt_tokens();
  output_tokens += o.usage.completion_tokens();
  reused_tokens += o.usage.reused_tokens();
  const bool text = o.first_text != RequestOutcome::Time{};
  if (text && !o.slow) first.Record(o.first_text - o.intended);
  if (o.status.ok() && !o.slow && !o.ended_here) whole.Record(o.ended - o.intended);
  if (IsRefusal(o)) refused.Record(o.ended - o.started);
  const std::lock_guard lock(mu_);
  const std::string code = o.ended_here && !o.status.ok() ? "hung up by this client" : CodeOf(o);
  ++codes_[codes_.size() < kMostCodes || codes_.count(code) > 0 ? code : "other"];
  if (o.status.ok()) ++ends_[FinishReasonName(o.reason)];
}

std::map<std::string, int64_t> LoadStats::codes() const {
  const std::lock_guard lock(mu_);
  return codes_;
}

std::map<std::string, int64_t> LoadStats::ends() const {
  const std::lock_guard lock(mu_);
  return ends_;
}

}  // namespace skein::client
