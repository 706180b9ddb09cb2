#include "server/request_log.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/check.h"
#include "engine/clock.h"
#include "server/request_line.h"
#include "server/status.h"

namespace skein::server {

// What is known under the id that is asked for; null: nothing.
absl::StatusOr<RequestLog::Opened> RequestLog::Answer(const std::shared_ptr<RequestRecord>& record,
                                                      const Fingerprint& fingerprint) {
  if (record == nullptr) return Opened{Opened::kNew, nullptr};
  if (record->spec().fingerprint != fingerprint) {
    const std::string& id = record->spec().request_id;
    return WithErrorInfo(absl::AlreadyExistsError(absl::StrCat(
                             "request id '", id,
                             "' was used with other input; a new request needs an id of its own")),
                         "REQUEST_ID_IN_USE", {{"request_id", id}});
  }
  switch (record->stage()) {
    case RequestRecord::Stage::kRunning:
    case RequestRecord::Stage::kKept:
      return Opened{Opened::kJoined, record};
    case RequestRecord::Stage::kEnding:
      return Opened{Opened::kEnding, record};
    case RequestRecord::Stage::kUncommitted:
      break;  // it runs again; the old run leaves the window in its turn
  }
  return Opened{Opened::kNew, nullptr};
}

absl::StatusOr<RequestLog::Opened> RequestLog::Look(const std::string& tenant,
                                                    const std::string& request_id,
                                                    const Fingerprint& fingerprint) {
  const absl::StatusOr<std::shared_ptr<RequestRecord>> record = Find(tenant, request_id);
  return Answer(record.ok() ? *record : nullptr, fingerprint);
}

absl::StatusOr<RequestLog::Opened> RequestLog::Open(RequestSpec spec) {
  const std::lock_guard lock(mu_);
  Tenant& tenant = tenants_[spec.tenant];
  ExpireLocked(&tenant, engine::MonotonicNow());
  std::shared_ptr<RequestRecord>& place = tenant.records[spec.request_id];
  SKEIN_ASSIGN_OR_RETURN(Opened known, Answer(place, spec.fingerprint));
  if (known.how != Opened::kNew) return known;
  place = std::make_shared<RequestRecord>(
      std::move(spec), [this](std::shared_ptr<RequestRecord> record) { OnEnd(std::move(record)); });
  ++running_;
  return Opened{Opened::kNew, place};
}

void RequestLog::Refuse(const std::shared_ptr<RequestRecord>& record, const absl::Status& status) {
  {
    const std::lock_guard lock(mu_);
    Forget(&tenants_[record->spec().tenant], *record);
  }
  record->Refuse(status);
}

absl::StatusOr<std::shared_ptr<RequestRecord>> RequestLog::Find(const std::string& tenant,
                                                                const std::string& request_id) {
  const std::lock_guard lock(mu_);
  const auto it = tenants_.find(tenant);
  if (it != tenants_.end()) {
    ExpireLocked(&it->second, engine::MonotonicNow());
    const auto found = it->second.records.find(request_id);
    if (found != it->second.records.end()) return found->second;
    if (it->second.passed_ids.contains(request_id)) {
      return WithErrorInfo(
          absl::NotFoundError(absl::StrCat(
              "request '", request_id, "' has ended, and its events are no longer kept (at most ",
              options_.kept, " ended requests, for ", absl::FormatDuration(options_.kept_age),
              ")")),
          "REQUEST_EXPIRED", {{"request_id", request_id}});
    }
  }
  return WithErrorInfo(absl::NotFoundError(absl::StrCat("no request '", request_id, "' is known")),
                       "REQUEST_NOT_FOUND", {{"request_id", request_id}});
}

// From the thread that ends the request. One that was refused or replaced is not in the map.
void RequestLog::OnEnd(std::shared_ptr<RequestRecord> record) {
  if (record->unread()) LogUnread(*record);
  const std::lock_guard lock(mu_);
  --running_;
  Tenant& tenant = tenants_[record->spec().tenant];
  const auto it = tenant.records.find(record->spec().request_id);
  if (it == tenant.records.end() || it->second != record) return;
  const int64_t bytes = record->bytes();
  const absl::Time now = engine::MonotonicNow();
  tenant.ended.push_back({std::move(record), now, bytes});
  tenant.bytes += bytes;
  bytes_ += bytes;
  while (static_cast<int64_t>(tenant.ended.size()) > options_.kept) PopOldest(&tenant);
  ExpireLocked(&tenant, now);
  KeepWithinBytes();
}

void RequestLog::Forget(Tenant* tenant, const RequestRecord& record) {
  const auto it = tenant->records.find(record.spec().request_id);
  if (it != tenant->records.end() && it->second.get() == &record) tenant->records.erase(it);
}

void RequestLog::PopOldest(Tenant* tenant) {
  EndedRecord& oldest = tenant->ended.front();
  const std::string& id = oldest.record->spec().request_id;
  const auto it = tenant->records.find(id);
  if (it != tenant->records.end() && it->second == oldest.record) {
    tenant->records.erase(it);
    if (tenant->passed_ids.insert(id).second) tenant->passed.push_back(id);
    if (static_cast<int64_t>(tenant->passed.size()) > options_.kept) {
      tenant->passed_ids.erase(tenant->passed.front());
      tenant->passed.pop_front();
    }
  }
  tenant->bytes -= oldest.bytes;
  bytes_ -= oldest.bytes;
  if (tenant->with_tokens_from > 0) --tenant->with_tokens_from;
  tenant->ended.pop_front();
}

void RequestLog::ExpireLocked(Tenant* tenant, absl::Time now) {
  while (!tenant->ended.empty() && now - tenant->ended.front().at >= options_.kept_age) {
    PopOldest(tenant);
  }
}

void RequestLog::KeepWithinBytes() {
  while (bytes_ > options_.kept_bytes) {
    Tenant* most = nullptr;
    for (auto& [name, tenant] : tenants_) {
      if (most == nullptr || tenant.bytes > most->bytes) most = &tenant;
    }
    EndedRecord& oldest = most->ended[most->with_tokens_from++];
    oldest.record->DropTokens();
    most->bytes -= oldest.bytes;
    bytes_ -= oldest.bytes;
    oldest.bytes = 0;
  }
}

void RequestLog::Expire() {
  const std::lock_guard lock(mu_);
  const absl::Time now = engine::MonotonicNow();
  for (auto& [name, tenant] : tenants_) ExpireLocked(&tenant, now);
}

RequestLogGauges RequestLog::gauges() const {
  const std::lock_guard lock(mu_);
  RequestLogGauges gauges;
  gauges.running = running_;
  for (const auto& [name, tenant] : tenants_) {
    gauges.kept += static_cast<int64_t>(tenant.ended.size());
  }
  gauges.kept_bytes = bytes_;
  return gauges;
}

}  // namespace skein::server
