#include "server/convert_conversations.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "server/convert.h"
#include "server/status.h"

namespace skein::server {
namespace {

constexpr int32_t kDefaultPage = 100;

int32_t TakePageSize(int32_t wanted, int32_t when_unset, FieldViolations* bad) {
  if (wanted < 0 || wanted > kMaxConversationsPage) {
    bad->Add("page_size",
             absl::StrCat("is ", wanted, ", must be in [1, ", kMaxConversationsPage, "]"));
  }
  return wanted == 0 ? when_unset : wanted;
}

absl::Time TakeTime(const google::protobuf::Timestamp& in, absl::string_view field,
                    FieldViolations* bad) {
  // Years 1 to 9999, as the message's definition has it.
  if (in.seconds() < -62135596800 || in.seconds() > 253402300799 || in.nanos() < 0 ||
      in.nanos() > 999999999) {
    bad->Add(field, "is no valid time");
    return absl::UnixEpoch();
  }
  return absl::FromUnixSeconds(in.seconds()) + absl::Nanoseconds(in.nanos());
}

}  // namespace

absl::StatusOr<CreateCommand> ToCommand(const v1::CreateConversationRequest& in) {
  CreateCommand out;
  FieldViolations bad;
  CheckId(in.id(), "id", kMaxConversationId, /*allow_empty=*/true, &bad);
  out.id = in.id();
  if (in.has_ttl()) out.made.ttl = TakeTtl(in.ttl(), "ttl", &bad);
  if (in.has_prompt_state() && in.prompt_state().empty()) bad.Add("prompt_state", "is empty");
  if (!in.model().empty() && !in.has_prompt_state()) bad.Add("model", "needs a prompt_state");
  out.prompt_state = in.prompt_state();
  out.model = in.model();
  if (in.has_conversation()) {
    const v1::ForkSource& source = in.conversation();
    CheckId(source.conversation_id(), "conversation.conversation_id", kMaxConversationId,
            /*allow_empty=*/false, &bad);
    out.source = source.conversation_id();
    if (source.has_version()) out.version = source.version();
  }
  if (!bad.empty()) return bad.ToStatus();
  return out;
}

absl::StatusOr<GetCommand> ToCommand(const v1::GetConversationRequest& in) {
  GetCommand out;
  FieldViolations bad;
  CheckId(in.id(), "id", kMaxConversationId, /*allow_empty=*/false, &bad);
  out.id = in.id();
  if (!v1::View_IsValid(in.view())) bad.Add("view", "unknown value");
  out.history = in.view() == v1::VIEW_HISTORY;
  out.size = TakePageSize(in.page_size(), kMaxConversationsPage, &bad);
  if (!in.page_token().empty() &&
      (!absl::SimpleAtoi(in.page_token(), &out.after) || out.after < 0)) {
    bad.Add("page_token", "is not from an answer of Get");
  }
  if (!bad.empty()) return bad.ToStatus();
  return out;
}

absl::StatusOr<engine::ListQuery> ToCommand(const v1::ListConversationsRequest& in) {
  engine::ListQuery out;
  FieldViolations bad;
  CheckId(in.id_prefix(), "id_prefix", kMaxConversationId, /*allow_empty=*/true, &bad);
  CheckId(in.page_token(), "page_token", kMaxConversationId, /*allow_empty=*/true, &bad);
  out.prefix = in.id_prefix();
  out.after = in.page_token();
  out.limit = TakePageSize(in.page_size(), kDefaultPage, &bad);
  if (in.has_busy()) out.busy = in.busy();
  if (in.has_has_state()) out.has_state = in.has_state();
  if (in.has_used_since()) out.used_since = TakeTime(in.used_since(), "used_since", &bad);
  if (in.has_used_before()) out.used_before = TakeTime(in.used_before(), "used_before", &bad);
  if (!bad.empty()) return bad.ToStatus();
  return out;
}

absl::StatusOr<ForkCommand> ToCommand(const v1::ForkConversationRequest& in,
                                      const LimitsConfig& limits) {
  ForkCommand out;
  FieldViolations bad;
  CheckId(in.id(), "id", kMaxConversationId, /*allow_empty=*/false, &bad);
  out.id = in.id();
  if (in.has_version()) out.version = in.version();
  if (in.has_ttl()) out.made.ttl = TakeTtl(in.ttl(), "ttl", &bad);
  if (in.count() != 0) out.count = in.count();
  if (out.count < 1 || out.count > limits.forks) {
    bad.Add("count",
            absl::StrCat("is ", out.count, ", must be in [1, ", limits.forks, "] (limits.forks)"));
  }
  if (in.new_ids_size() != 0 && in.new_ids_size() != out.count) {
    bad.Add("new_ids",
            absl::StrCat("has ", in.new_ids_size(), " entries, must have none or ", out.count));
  }
  for (int i = 0; i < in.new_ids_size(); ++i) {
    CheckId(in.new_ids(i), absl::StrCat("new_ids[", i, "]"), kMaxConversationId,
            /*allow_empty=*/false, &bad);
  }
  if (!bad.empty()) return bad.ToStatus();
  out.new_ids.assign(in.new_ids().begin(), in.new_ids().end());
  return out;
}

absl::Status Check(const v1::DeleteConversationRequest& in) {
  return CheckConversationId(in.id(), "id", /*allow_empty=*/false);
}

absl::Status Check(const v1::RewindConversationRequest& in) {
  return CheckConversationId(in.id(), "id", /*allow_empty=*/false);
}

}  // namespace skein::server
