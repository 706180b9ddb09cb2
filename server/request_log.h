#pragma once
// The requests of each tenant by id: those that run, and a bounded window of those that ended. This
// is what makes a retry safe (api.md, section 2): the same id with the same input joins the running
// request or gets the kept result again; one that left nothing runs again; other input is refused.
//
// The window is bounded by count (of each tenant), bytes (of all; the tenant with the most gives
// first, and only its tokens: how a request ended stays known) and age. Thread-safe.

#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/request_log_options.h"
#include "server/request_record.h"

namespace skein::server {

struct RequestLogGauges {
  int64_t running = 0, kept = 0, kept_bytes = 0;
};

class RequestLog {
 public:
  explicit RequestLog(RequestLogOptions options) : options_(options) {}
  RequestLog(const RequestLog&) = delete;
  RequestLog& operator=(const RequestLog&) = delete;

  struct Opened {
    enum How {
      kNew,     // the caller submits it, or says Refuse
      kJoined,  // it runs, or its result is kept
      kEnding,  // wait for its end, then open again
    };
    How how;
    std::shared_ptr<RequestRecord> record;
  };
  // ALREADY_EXISTS: the id was used with other input.
  absl::StatusOr<Opened> Open(RequestSpec spec);
  // What Open would say; kNew is without a record.
  absl::StatusOr<Opened> Look(const std::string& tenant, const std::string& request_id,
                              const Fingerprint& fingerprint);
  // A new request was refused at submission: nothing is remembered of it.
  void Refuse(const std::shared_ptr<RequestRecord>& record, const absl::Status& status);
  // NOT_FOUND; the reason tells whether it was there once.
  absl::StatusOr<std::shared_ptr<RequestRecord>> Find(const std::string& tenant,
                                                      const std::string& request_id);
  // Forgets what is too old. Called now and then.
  void Expire();
  RequestLogGauges gauges() const;

 private:
  struct EndedRecord {
    std::shared_ptr<RequestRecord> record;
    absl::Time at;  // monotonic
    int64_t bytes;
  };
  struct Tenant {
    absl::flat_hash_map<std::string, std::shared_ptr<RequestRecord>> records;
    std::deque<EndedRecord> ended;  // oldest first; some were replaced by a newer run since
    size_t with_tokens_from = 0;    // the ones before it have lost their tokens
    int64_t bytes = 0;              // of `ended`
    // Ids that were in the window, oldest first, as many as the window has places.
    std::deque<std::string> passed;
    absl::flat_hash_set<std::string> passed_ids;
  };

  static absl::StatusOr<Opened> Answer(const std::shared_ptr<RequestRecord>& record,
                                       const Fingerprint& fingerprint);
  void OnEnd(std::shared_ptr<RequestRecord> record);
  void Forget(Tenant* tenant, const RequestRecord& record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void PopOldest(Tenant* tenant) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ExpireLocked(Tenant* tenant, absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void KeepWithinBytes() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const RequestLogOptions options_;
  mutable std::mutex mu_;  // taken before that of a record
  absl::flat_hash_map<std::string, Tenant> tenants_ ABSL_GUARDED_BY(mu_);
  int64_t bytes_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t running_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace skein::server
