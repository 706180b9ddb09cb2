// When a row lends its slot to someone who waits; the rules are at the top of admission.h.

#include <algorithm>

#include "engine/admission.h"

namespace skein::engine {
namespace {

// A request is at risk when it has less than this many times its likely service left.
constexpr int kRiskFactor = 2;

}  // namespace

// Also when half of the time that it was given has gone by waiting: what service takes is a guess.
bool Admission::AtRisk(const Known& known, absl::Time now, const StepCost& cost) const {
  const Request& r = known.request;
  if (!IsDated(r)) return false;
  const int32_t rows = static_cast<int32_t>(holders_.size());
  const absl::Duration likely =
      cost.PrefillTime(r.prompt_tokens) + cost.Predict(rows, 0) * (1 + r.most_output);
  const absl::Duration left = r.deadline - now;
  return left <= std::max(kRiskFactor * likely, (r.deadline - r.arrived) / 2);
}

int32_t Admission::FairShare() const { return std::max(1, options_.slots / std::max(1, active_)); }

bool Admission::Starved(const Known& known, absl::Time now) const {
  return now - known.since >= options_.starve_after && 2 * known.tenant->holding < FairShare();
}

// The latest deadline lends; among equals the tenant that was served most, then the youngest.
Admission::Known* Admission::LenderByDeadline(const Known& to, absl::Time now) {
  Known* lender = nullptr;
  const auto key = [](const Known& k) {
    return std::make_tuple(k.request.deadline, k.tenant->served, k.request.ticket);
  };
  for (const Ticket ticket : holders_) {
    Known* k = &known_.at(ticket);
    if (k->keeps > now || k->request.deadline <= to.request.deadline) continue;
    if (lender == nullptr || key(*k) > key(*lender)) lender = k;
  }
  return lender;
}

// The tenant with the most slots lends, if that is more than its share; or, when `to` has none at
// all, one that was served more.
Admission::Known* Admission::LenderByShare(const Known& to, absl::Time now, const StepCost& cost) {
  Known* lender = nullptr;
  const auto key = [](const Known& k) {
    return std::make_tuple(k.tenant->holding, k.tenant->served, k.request.deadline,
                           k.request.ticket);
  };
  for (const Ticket ticket : holders_) {
    Known* k = &known_.at(ticket);
    if (k->tenant == to.tenant || k->keeps > now || AtRisk(*k, now, cost)) continue;
    const bool ahead = to.tenant->holding == 0 && k->tenant->served > to.tenant->served &&
                       now - k->since >= options_.starve_after;
    if (k->tenant->holding <= FairShare() && !ahead) continue;
    if (lender == nullptr || key(*k) > key(*lender)) lender = k;
  }
  return lender;
}

std::optional<Admission::Swap> Admission::Preempt(absl::Time now, const StepCost& cost) {
  if (parked_ >= options_.max_parked) return std::nullopt;
  Reindex();
  Known* to = FirstDated();
  Known* lender = nullptr;
  if (to != nullptr && AtRisk(*to, now, cost)) lender = LenderByDeadline(*to, now);
  if (lender == nullptr) {
    to = FirstUndated();
    if (to != nullptr && Starved(*to, now)) lender = LenderByShare(*to, now, cost);
  }
  if (lender == nullptr) return std::nullopt;
  const Swap swap{lender->request.ticket, to->request.ticket};
  Park(swap.out, now);
  Unpark(swap.out, now);
  Hold(to, now);
  return swap;
}

}  // namespace skein::engine
