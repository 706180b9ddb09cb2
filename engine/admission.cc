#include "engine/admission.h"

#include <algorithm>
#include <limits>
#include <queue>

#include "engine/base/check.h"

namespace skein::engine {
namespace {

// What a tenant is charged for a token: an output token costs a row of every step, a prompt token a
// part of one.
constexpr int64_t kPrefillWeight = 1;
constexpr int64_t kOutputWeight = 2;
// Tenants without a request whose debt is remembered.
constexpr size_t kMostIdle = 1024;
// Until a request that was found overdue, or nearly, is looked at again.
constexpr absl::Duration kLookAgain = absl::Milliseconds(10);
// The part of the best cost seen that counts as certain: larger steps than those may cost less.
constexpr double kCertain = 0.5;

}  // namespace

absl::Duration LeastService(const StepCost& cost, int64_t prompt_tokens, int64_t output_tokens) {
  return kCertain * cost.AtLeast(prompt_tokens, std::max<int64_t>(0, output_tokens - 1));
}

// ---- tenants

Admission::Tenant* Admission::Activate(const std::string& name) {
  std::unique_ptr<Tenant>& tenant = tenants_[name];
  if (tenant == nullptr) {
    tenant = std::make_unique<Tenant>();
    tenant->name = name;
  }
  if (tenant->known == 0) {
    tenant->served = std::max(tenant->served, LeastServed());
    ++active_;
  }
  ++tenant->known;
  return tenant.get();
}

void Admission::Deactivate(Tenant* tenant) {
  if (--tenant->known > 0) return;
  --active_;
  Reindex();  // nothing refers to it any more
  // A debt is worth remembering while others with less are there to be served first.
  if (active_ == 0 || tenants_.size() > static_cast<size_t>(active_) + kMostIdle) {
    absl::erase_if(tenants_, [](const auto& entry) { return entry.second->known == 0; });
  } else if (tenant->served <= LeastServed()) {
    tenants_.erase(tenant->name);
  }
}

// Of the active ones; 0 when there are none.
int64_t Admission::LeastServed() const {
  int64_t least = std::numeric_limits<int64_t>::max();
  for (const auto& [name, tenant] : tenants_) {
    if (tenant->known > 0) least = std::min(least, tenant->served);
  }
  return least == std::numeric_limits<int64_t>::max() ? 0 : least;
}

int64_t Admission::served(const std::string& tenant) const {
  const auto it = tenants_.find(tenant);
  return it == tenants_.end() ? 0 : it->second->served;
}

void Admission::Touch(Tenant* tenant) {
  if (tenant->stale) return;
  tenant->stale = true;
  stale_.push_back(tenant);
}

namespace {

// Moves an entry of a set to its new key, without allocating when there was one before.
template <typename Set, typename Key>
void MoveKey(Set* set, std::optional<Key>* old, std::optional<Key> fresh) {
  if (*old == fresh) return;
  typename Set::node_type node;
  if (old->has_value()) node = set->extract(**old);
  if (fresh.has_value()) {
    if (node.empty()) {
      set->insert(*fresh);
    } else {
      node.value() = *fresh;
      set->insert(std::move(node));
    }
  }
  *old = std::move(fresh);
}

}  // namespace

void Admission::Reindex() {
  for (Tenant* tenant : stale_) {
    std::optional<DatedKey> dated;
    std::optional<UndatedKey> undated;
    if (!tenant->dated.empty()) {
      const auto& [deadline, ticket] = *tenant->dated.begin();
      dated = {deadline, tenant->served, ticket, tenant};
    }
    if (!tenant->undated.empty()) {
      undated = {tenant->served, *tenant->undated.begin(), tenant};
    }
    MoveKey(&dated_, &tenant->dated_key, dated);
    MoveKey(&undated_, &tenant->undated_key, undated);
    tenant->stale = false;
  }
  stale_.clear();
}

// ---- one request's way

void Admission::IntoLine(Known* known, absl::Time now) {
  const bool dated = IsDated(known->request);
  known->state = State::kWaiting;
  known->since = now;
  if (dated) {
    known->tenant->dated.emplace(known->request.deadline, known->request.ticket);
  } else {
    known->tenant->undated.insert(known->request.ticket);
  }
  ages_[dated].emplace(now, known->request.ticket);
  Touch(known->tenant);
}

void Admission::OutOfLine(Known* known) {
  const bool dated = IsDated(known->request);
  if (dated) {
    known->tenant->dated.erase({known->request.deadline, known->request.ticket});
  } else {
    known->tenant->undated.erase(known->request.ticket);
  }
  ages_[dated].erase({known->since, known->request.ticket});
  Touch(known->tenant);
}

void Admission::SetGiveUp(Known* known, absl::Time at) {
  if (known->give_up == at) return;
  if (known->give_up != absl::InfiniteFuture())
    overdue_.erase({known->give_up, known->request.ticket});
  known->give_up = at;
  if (at != absl::InfiniteFuture()) overdue_.emplace(at, known->request.ticket);
}

void Admission::Enqueue(Request request) {
  const Ticket ticket = request.ticket;
  const auto [it, fresh] = known_.try_emplace(ticket);
  SKEIN_CHECK(fresh);
  Known* known = &it->second;
  known->request = std::move(request);
  known->tenant = Activate(known->request.tenant);
  IntoLine(known, known->request.arrived);
  // Looked at as soon as there are costs to look with.
  if (known->request.expires != absl::InfiniteFuture()) SetGiveUp(known, known->request.arrived);
}

void Admission::Hold(Known* known, absl::Time now) {
  const bool patient = !IsDated(known->request) && now - known->since >= options_.patience;
  OutOfLine(known);
  SetGiveUp(known, absl::InfiniteFuture());
  if (known->admitted) --parked_;
  known->admitted = true;
  known->state = State::kHolding;
  known->since = now;
  known->keeps = now + (patient ? options_.patience : options_.least_stay);
  ++known->tenant->holding;
  holders_.insert(known->request.ticket);
}

void Admission::LetGo(Known* known) {
  --known->tenant->holding;
  holders_.erase(known->request.ticket);
  Touch(known->tenant);
}

void Admission::Park(Ticket ticket, absl::Time now) {
  Known* known = &known_.at(ticket);
  SKEIN_CHECK(known->state != State::kParked);
  if (known->state == State::kHolding || !known->admitted) ++parked_;
  known->admitted = true;
  if (known->state == State::kHolding) {
    LetGo(known);
  } else {
    OutOfLine(known);
  }
  known->state = State::kParked;
  known->since = now;
}

void Admission::Unpark(Ticket ticket, absl::Time now) {
  Known* known = &known_.at(ticket);
  SKEIN_CHECK(known->state == State::kParked);
  IntoLine(known, now);
}

bool Admission::Forget(Ticket ticket) {
  const auto it = known_.find(ticket);
  if (it == known_.end()) return false;
  Known* known = &it->second;
  SetGiveUp(known, absl::InfiniteFuture());
  if (known->admitted && known->state != State::kHolding) --parked_;
  if (known->state == State::kWaiting) OutOfLine(known);
  if (known->state == State::kHolding) LetGo(known);
  Tenant* tenant = known->tenant;
  known_.erase(it);
  Deactivate(tenant);
  return true;
}

void Admission::Charge(Ticket ticket, int64_t prefill_tokens, int64_t output_tokens) {
  Tenant* tenant = known_.at(ticket).tenant;
  tenant->served += kPrefillWeight * prefill_tokens + kOutputWeight * output_tokens;
  if (!tenant->dated.empty() || !tenant->undated.empty()) Touch(tenant);
}

// ---- who is next

Admission::Known* Admission::FirstDated() {
  return dated_.empty() ? nullptr : &known_.at(std::get<2>(*dated_.begin()));
}

Admission::Known* Admission::FirstUndated() {
  return undated_.empty() ? nullptr : &known_.at(std::get<1>(*undated_.begin()));
}

bool Admission::UndatedFirst(absl::Time now) const {
  if (dated_.empty()) return true;
  if (undated_.empty() || !dated_last_) return false;
  return now - ages_[0].begin()->first >= options_.patience;
}

std::optional<Admission::Ticket> Admission::Pop(absl::Time now) {
  Reindex();
  const bool undated = UndatedFirst(now);
  Known* known = undated ? FirstUndated() : FirstDated();
  if (known == nullptr) return std::nullopt;
  dated_last_ = !undated;
  Hold(known, now);
  return known->request.ticket;
}

void Admission::Take(Ticket ticket, absl::Time now) {
  Known* known = &known_.at(ticket);
  SKEIN_CHECK(known->state == State::kWaiting);
  Hold(known, now);
}

std::optional<Admission::Overdue> Admission::NextOverdue(absl::Time now, const StepCost& cost) {
  while (!overdue_.empty() && overdue_.begin()->first <= now) {
    Known* known = &known_.at(overdue_.begin()->second);
    const Request& r = known->request;
    absl::Time give_up = r.expires;
    if (r.expires == r.deadline) {
      give_up -= LeastService(cost, r.prompt_tokens, r.least_output);
    }
    const bool overdue = give_up <= now;
    SetGiveUp(known, std::max(give_up, now + kLookAgain));
    if (overdue) return Overdue{r.ticket, r.expires <= now};
  }
  return std::nullopt;
}

absl::Duration Admission::oldest(absl::Time now) const {
  absl::Duration oldest;
  for (const auto& ages : ages_) {
    if (!ages.empty()) oldest = std::max(oldest, now - ages.begin()->first);
  }
  return oldest;
}

void Admission::Order(std::vector<Ticket>* tickets) const {
  tickets->clear();
  std::vector<std::tuple<absl::Time, int64_t, Ticket>> dated;
  // By the counter that each tenant will have when those before are served.
  using Turn = std::tuple<int64_t, Ticket, std::set<Ticket>::const_iterator, const Tenant*>;
  const auto later = [](const Turn& a, const Turn& b) {
    return std::tie(std::get<0>(a), std::get<1>(a)) > std::tie(std::get<0>(b), std::get<1>(b));
  };
  std::priority_queue<Turn, std::vector<Turn>, decltype(later)> undated(later);
  for (const auto& [name, tenant] : tenants_) {
    for (const auto& [deadline, ticket] : tenant->dated)
      dated.emplace_back(deadline, tenant->served, ticket);
    const auto first = tenant->undated.begin();
    if (first != tenant->undated.end()) {
      undated.emplace(tenant->served, *first, first, tenant.get());
    }
  }
  std::sort(dated.begin(), dated.end());
  for (const auto& [deadline, served, ticket] : dated) tickets->push_back(ticket);
  while (!undated.empty()) {
    auto [served, ticket, at, tenant] = undated.top();
    undated.pop();
    tickets->push_back(ticket);
    served += kPrefillWeight * known_.at(ticket).request.prompt_tokens;
    if (++at != tenant->undated.end()) undated.emplace(served, *at, at, tenant);
  }
}

}  // namespace skein::engine
