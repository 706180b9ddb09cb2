#pragma once
// Who gets a slot next, and who lends his to someone more urgent. Pure: no device, thread or clock
// inside; time is passed in.
//
// Order: earliest deadline; then, among those without one (or with the same), the tenant that has
// been served least; then first come, first served. "Served" is a virtual token counter (VTC, Sheng
// et al. 2024): prefill and output tokens with weights, charged as they are computed. A tenant that
// comes back from nothing starts at the least counter of those that are active, so idleness earns
// no credit; one that goes away and comes back at once keeps its debt.
//
// Requests without a deadline cannot be starved by those with one: once one has waited for
// `patience`, every second free slot goes to them.
//
// A slot changes hands while its row runs (lossless: the state is parked) in two cases only:
//   - a request would miss its deadline by waiting on, and a row with a later one runs;
//   - a tenant holds less than half of its fair share of the slots although it has waited for
//     `starve_after`, and another holds more than its share.
// A row that was given a slot keeps it for `least_stay` (one that waited out its patience, for as
// long again), so that no two rows take turns at copying.
//
// Enqueue, Pop, Park and Forget are O(log n) in the number of requests.

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "engine/step_cost.h"

namespace skein::engine {

struct AdmissionOptions {
  int32_t slots = 64;
  int32_t max_parked = 128;  // rows without a slot beside those that wait for their first one
  absl::Duration patience = absl::Seconds(5);
  absl::Duration starve_after = absl::Seconds(1);
  absl::Duration least_stay = absl::Milliseconds(200);
};

class Admission {
 public:
  using Ticket = uint64_t;  // grows with arrival, never reused

  struct Request {
    Ticket ticket = 0;
    std::string tenant;
    absl::Time arrived;
    absl::Time deadline = absl::InfiniteFuture();
    absl::Time expires = absl::InfiniteFuture();  // ends in any case; at most the deadline
    int64_t prompt_tokens = 0;
    int64_t least_output = 0;  // tokens without which it cannot end well
    int64_t most_output = 0;
  };
  struct Swap {
    Ticket out = 0, in = 0;
  };

  explicit Admission(const AdmissionOptions& options) : options_(options) {}
  Admission(const Admission&) = delete;
  Admission& operator=(const Admission&) = delete;

  // A new request waits.
  void Enqueue(Request request);
  // The next one to get a slot; it holds it from now on. None: nobody waits.
  std::optional<Ticket> Pop(absl::Time now);
  void Take(Ticket ticket, absl::Time now);  // this one gets a slot
  // When all slots are held: the row that lends its slot, and who gets it. Both are as after Pop
  // and Park: `out` waits again.
  std::optional<Swap> Preempt(absl::Time now, const StepCost& cost);
  // A row that holds a slot, or waits for its next one, does not want it for now (its reader is
  // slow).
  void Park(Ticket ticket, absl::Time now);
  // It wants one again.
  void Unpark(Ticket ticket, absl::Time now);
  // The request has ended, wherever it was. False: it is not known.
  bool Forget(Ticket ticket);
  // Tokens computed for a request.
  void Charge(Ticket ticket, int64_t prefill_tokens, int64_t output_tokens);

  // One that has never held a slot and has no reason to wait on: it has expired, or cannot meet its
  // deadline any more. It stays known until Forget; is told again only after a while.
  struct Overdue {
    Ticket ticket = 0;
    bool expired = false;  // else hopeless
  };
  std::optional<Overdue> NextOverdue(absl::Time now, const StepCost& cost);

  // ---- what is told to others
  int64_t waiting() const { return static_cast<int64_t>(ages_[0].size() + ages_[1].size()); }
  int32_t parked() const { return parked_; }
  absl::Duration oldest(absl::Time now) const;  // has waited
  // All who wait, in the order in which they would be admitted if nothing changed. O(n log n).
  void Order(std::vector<Ticket>* tickets) const;
  int64_t served(const std::string& tenant) const;  // its counter; 0: not known

 private:
  enum class State { kWaiting, kHolding, kParked };
  struct Tenant;
  struct Known {
    Request request;
    Tenant* tenant = nullptr;
    State state = State::kWaiting;
    bool admitted = false;                        // has held a slot
    absl::Time since;                             // in this state
    absl::Time keeps;                             // its slot at least until then
    absl::Time give_up = absl::InfiniteFuture();  // its key in overdue_; none: not in it
  };
  using DatedKey = std::tuple<absl::Time, int64_t, Ticket, Tenant*>;  // deadline, served
  using UndatedKey = std::tuple<int64_t, Ticket, Tenant*>;            // served
  struct Tenant {
    std::string name;
    int64_t served = 0;
    int32_t known = 0, holding = 0;
    std::set<std::pair<absl::Time, Ticket>> dated;
    std::set<Ticket> undated;
    // Its entries in dated_ and undated_, which are of the last Reindex.
    std::optional<DatedKey> dated_key;
    std::optional<UndatedKey> undated_key;
    bool stale = false;  // the keys are not up to date
  };

  static bool IsDated(const Request& request) { return request.deadline != absl::InfiniteFuture(); }
  Tenant* Activate(const std::string& name);
  void Deactivate(Tenant* tenant);
  int64_t LeastServed() const;
  void Touch(Tenant* tenant);
  void Reindex();
  void IntoLine(Known* known, absl::Time now);
  void OutOfLine(Known* known);
  void Hold(Known* known, absl::Time now);
  void LetGo(Known* known);
  Known* FirstDated();
  Known* FirstUndated();
  bool UndatedFirst(absl::Time now) const;
  void SetGiveUp(Known* known, absl::Time at);

  // preemption.cc
  bool AtRisk(const Known& known, absl::Time now, const StepCost& cost) const;
  bool Starved(const Known& known, absl::Time now) const;
  int32_t FairShare() const;
  Known* LenderByDeadline(const Known& to, absl::Time now);
  Known* LenderByShare(const Known& to, absl::Time now, const StepCost& cost);

  const AdmissionOptions options_;
  absl::flat_hash_map<Ticket, Known> known_;
  absl::flat_hash_map<std::string, std::unique_ptr<Tenant>> tenants_;
  std::vector<Tenant*> stale_;
  std::set<Ticket> holders_;
  std::set<DatedKey> dated_;                         // one for each tenant that has dated ones
  std::set<UndatedKey> undated_;                     // and undated ones
  std::set<std::pair<absl::Time, Ticket>> ages_[2];  // since when: undated, dated
  std::set<std::pair<absl::Time, Ticket>> overdue_;  // never admitted, with a time to give up
  int32_t active_ = 0, parked_ = 0;
  bool dated_last_ = false;  // the last slot went by deadline
};

// The least time that a request needs once it has a slot: half of the best that was ever seen, so
// that nobody is refused who could have made it.
absl::Duration LeastService(const StepCost& cost, int64_t prompt_tokens, int64_t output_tokens);

}  // namespace skein::engine
