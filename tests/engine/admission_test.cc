// Who gets a slot and who lends one: tables over simulated time, and random operations against the
// rules written the slow way.

#include "engine/admission.h"

#include <gmock/gmock.h>

#include <map>
#include <random>

namespace skein::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using Ticket = Admission::Ticket;

const absl::Time kStart = absl::UnixEpoch() + absl::Hours(1);
absl::Time At(double seconds) { return kStart + absl::Seconds(seconds); }
constexpr double kNever = 1e18;

// Steps that cost 10 ms, 1 ms a decoding row and 1 ms a prompt token.
const StepCost& Costs() {
  static const StepCost cost = [] {
    StepCost cost;
    for (int i = 0; i < 200; ++i) {
      const int decodes = i % 7, prefill = i % 10 == 0 ? 1000 : (i * 13) % 40;
      cost.Learn(decodes, prefill, absl::Milliseconds(10 + decodes + prefill));
    }
    return cost;
  }();
  return cost;
}

Admission::Request Wish(Ticket ticket, const char* tenant, double arrived, double deadline = kNever,
                        int64_t prompt = 10) {
  Admission::Request request;
  request.ticket = ticket;
  request.tenant = tenant;
  request.arrived = At(arrived);
  request.deadline = deadline == kNever ? absl::InfiniteFuture() : At(deadline);
  request.expires = request.deadline;
  request.prompt_tokens = prompt;
  request.least_output = 1;
  request.most_output = 10;
  return request;
}

std::vector<Ticket> PopAll(Admission* admission, absl::Time now) {
  std::vector<Ticket> tickets;
  while (const auto ticket = admission->Pop(now)) tickets.push_back(*ticket);
  return tickets;
}

struct OrderCase {
  const char* name;
  std::vector<Admission::Request> waiting;
  std::map<std::string, int> served;  // output tokens of one who runs already
  std::vector<Ticket> expected;
};

const OrderCase kOrders[] = {
    {"nobody", {}, {}, {}},
    {"first come", {Wish(1, "a", 0), Wish(2, "a", 1), Wish(3, "a", 2)}, {}, {1, 2, 3}},
    {"earliest deadline", {Wish(1, "a", 0, 30), Wish(2, "a", 1, 20)}, {}, {2, 1}},
    {"a deadline before none", {Wish(1, "a", 0), Wish(2, "a", 1, 90)}, {}, {2, 1}},
    {"the tenant served least",
     {Wish(1, "a", 0), Wish(2, "a", 0), Wish(3, "b", 1)},
     {{"a", 100}, {"b", 10}},
     {3, 1, 2}},
    {"a deadline before the fair share",
     {Wish(1, "a", 0, 30), Wish(2, "b", 0)},
     {{"a", 100}, {"b", 10}},
     {1, 2}},
    {"equal deadlines by share",
     {Wish(1, "a", 0, 30), Wish(2, "b", 0, 30), Wish(3, "b", 0, 30)},
     {{"a", 100}, {"b", 10}},
     {2, 3, 1}},
};

TEST(Admission, OrderTable) {
  for (const OrderCase& c : kOrders) {
    Admission admission({});
    Ticket running = 1000;
    for (const auto& [tenant, tokens] : c.served)
      admission.Enqueue(Wish(running++, tenant.c_str(), 0));
    ASSERT_EQ(PopAll(&admission, At(0)).size(), c.served.size());
    running = 1000;
    for (const auto& [tenant, tokens] : c.served) admission.Charge(running++, 0, tokens);
    for (const auto& request : c.waiting) admission.Enqueue(request);
    std::vector<Ticket> told;
    admission.Order(&told);
    EXPECT_THAT(told, ElementsAreArray(c.expected)) << c.name;
    EXPECT_EQ(admission.waiting(), static_cast<int64_t>(c.expected.size())) << c.name;
    EXPECT_THAT(PopAll(&admission, At(2)), ElementsAreArray(c.expected)) << c.name;
    EXPECT_EQ(admission.waiting(), 0) << c.name;
  }
}

// Each slot is used for one request at a time; returns the tokens that each tenant got.
std::map<std::string, int64_t> Serve(Admission* admission, int slots, int steps,
                                     std::map<Ticket, std::pair<std::string, int>> left,
                                     const std::function<void()>& each = nullptr) {
  std::map<std::string, int64_t> got;
  std::vector<Ticket> running;
  for (int step = 0; step < steps; ++step) {
    if (each) each();
    while (static_cast<int>(running.size()) < slots) {
      const auto ticket = admission->Pop(At(0));
      if (!ticket.has_value()) break;
      running.push_back(*ticket);
    }
    for (const Ticket ticket : running) {
      admission->Charge(ticket, 0, 1);
      ++got[left.at(ticket).first];
      if (--left.at(ticket).second == 0) admission->Forget(ticket);
    }
    std::erase_if(running, [&](Ticket ticket) { return left.at(ticket).second == 0; });
  }
  return got;
}

TEST(Admission, TenantsGetEqualTokensWhateverTheyAskFor) {
  Admission admission({});
  std::map<Ticket, std::pair<std::string, int>> left;
  // One tenant sends ten times as many requests, and longer ones.
  for (Ticket t = 1; t <= 1000; ++t) {
    const bool greedy = t % 11 != 0;
    left[t] = {greedy ? "greedy" : "modest", greedy ? 40 : 10};
    admission.Enqueue(Wish(t, left[t].first.c_str(), 0));
  }
  const auto got = Serve(&admission, 8, 200, left);
  EXPECT_NEAR(got.at("greedy") / 1600.0, 0.5, 0.1);
  EXPECT_NEAR(got.at("modest") / 1600.0, 0.5, 0.1);
}

TEST(Admission, ComingBackEarnsNoCredit) {
  Admission admission({});
  admission.Enqueue(Wish(1, "a", 0));
  admission.Enqueue(Wish(2, "a", 0));
  ASSERT_EQ(admission.Pop(At(0)), 1u);
  admission.Charge(1, 100, 200);
  EXPECT_EQ(admission.served("a"), 500);  // a prompt token counts once, an output token twice
  admission.Enqueue(Wish(3, "b", 0));
  EXPECT_EQ(admission.served("b"), 500);  // not 0
  ASSERT_EQ(admission.Pop(At(0)), 2u);    // so it does not come before those who came earlier
}

TEST(Admission, GoingAwayAndComingBackKeepsTheDebt) {
  Admission admission({});
  admission.Enqueue(Wish(1, "a", 0));
  admission.Enqueue(Wish(2, "b", 0));
  PopAll(&admission, At(0));
  admission.Charge(1, 0, 1000);
  EXPECT_TRUE(admission.Forget(1));
  EXPECT_FALSE(admission.Forget(1));
  admission.Enqueue(Wish(3, "a", 1));
  EXPECT_EQ(admission.served("a"), 2000);
  admission.Enqueue(Wish(4, "b", 2));
  EXPECT_THAT(PopAll(&admission, At(2)), ElementsAre(4, 3));
}

TEST(Admission, TenantsWithoutRequestsAreForgotten) {
  Admission admission({});
  for (Ticket t = 1; t <= 10000; ++t) {
    admission.Enqueue(Wish(t, std::to_string(t).c_str(), 0));
    ASSERT_EQ(admission.Pop(At(0)), t);
    admission.Charge(t, 5, 5);
    admission.Forget(t);
    EXPECT_EQ(admission.served(std::to_string(t)), 0);
  }
}

TEST(Admission, DeadlinesDoNotStarveTheOthers) {
  Admission admission({.patience = absl::Seconds(5)});
  admission.Enqueue(Wish(1, "a", 0));
  admission.Enqueue(Wish(2, "a", 0));
  for (Ticket t = 3; t < 20; ++t) admission.Enqueue(Wish(t, "b", 0, 100));
  EXPECT_EQ(admission.Pop(At(4)), 3u);
  EXPECT_EQ(admission.Pop(At(4)), 4u);
  EXPECT_EQ(admission.Pop(At(6)), 1u);  // has waited out its patience
  EXPECT_EQ(admission.Pop(At(6)), 5u);
  EXPECT_EQ(admission.Pop(At(6)), 2u);
  EXPECT_EQ(admission.Pop(At(6)), 6u);
}

TEST(Admission, OldestIsOfThoseWhoWait) {
  Admission admission({});
  EXPECT_EQ(admission.oldest(At(9)), absl::ZeroDuration());
  admission.Enqueue(Wish(1, "a", 1));
  admission.Enqueue(Wish(2, "a", 2, 50));
  EXPECT_EQ(admission.oldest(At(9)), absl::Seconds(8));
  admission.Forget(1);
  EXPECT_EQ(admission.oldest(At(9)), absl::Seconds(7));
}

// ---- deadlines that cannot be met any more

struct HopelessCase {
  const char* name;
  double deadline;
  double max_time;  // after arrival at 0
  int64_t prompt;
  double now;
  std::optional<bool> overdue;  // whether it has expired; none: it stays
};

// At half of the learned costs: 1,000 prompt tokens take half a second.
const HopelessCase kHopeless[] = {
    {"no deadline", kNever, kNever, 1000, 1e6, std::nullopt},
    {"time enough", 10, kNever, 1000, 9.4, std::nullopt},
    {"too late for its prompt", 10, kNever, 1000, 9.6, false},
    {"a short prompt may wait longer", 10, kNever, 10, 9.9, std::nullopt},
    {"expired", 10, kNever, 1000, 10, true},
    {"max_time ends it well", 10, 5, 100000, 4.9, std::nullopt},
    {"max_time has passed", 10, 5, 10, 5, true},
    {"hopeless from the start", 0.1, kNever, 1000, 0, false},
};

TEST(Admission, HopelessTable) {
  for (const HopelessCase& c : kHopeless) {
    Admission admission({});
    auto wish = Wish(1, "a", 0, c.deadline, c.prompt);
    if (c.max_time != kNever) wish.expires = At(c.max_time);
    admission.Enqueue(wish);
    if (c.now > 0.05) {  // looked at on the way too
      ASSERT_FALSE(admission.NextOverdue(At(0), Costs()).has_value()) << c.name;
    }
    const auto overdue = admission.NextOverdue(At(c.now), Costs());
    ASSERT_EQ(overdue.has_value(), c.overdue.has_value()) << c.name;
    if (overdue.has_value()) {
      EXPECT_EQ(overdue->expired, *c.overdue) << c.name;
    }
    EXPECT_EQ(admission.NextOverdue(At(c.now), Costs()), std::nullopt) << c.name << ": told twice";
  }
}

TEST(Admission, NobodyIsGivenUpBeforeAnythingWasMeasured) {
  Admission admission({});
  admission.Enqueue(Wish(1, "a", 0, 0.001, 1000000));
  EXPECT_EQ(admission.NextOverdue(At(0), StepCost()), std::nullopt);
}

TEST(Admission, WhoHasHeldASlotIsNotGivenUp) {
  Admission admission({});
  admission.Enqueue(Wish(1, "a", 0, 10, 1000));
  ASSERT_EQ(admission.Pop(At(0)), 1u);
  admission.Park(1, At(1));
  admission.Unpark(1, At(2));
  EXPECT_EQ(admission.NextOverdue(At(20), Costs()), std::nullopt);
}

// ---- preemption

bool operator==(const std::optional<Admission::Swap>& a, const std::optional<Admission::Swap>& b) {
  if (a.has_value() != b.has_value()) return false;
  return !a.has_value() || (a->out == b->out && a->in == b->in);
}

struct PreemptCase {
  const char* name;
  std::vector<Admission::Request> running;
  std::vector<Admission::Request> waiting;
  double now;
  std::optional<Admission::Swap> expected;
};

constexpr Admission::Swap Lends(Ticket out, Ticket in) { return {out, in}; }

const PreemptCase kPreempt[] = {
    {"nobody waits", {Wish(1, "a", 0), Wish(2, "a", 0)}, {}, 10, {}},
    {"the same tenant waits for its turn",
     {Wish(1, "a", 0), Wish(2, "a", 0)},
     {Wish(3, "a", 0)},
     10,
     {}},
    {"a deadline with time enough waits",
     {Wish(1, "a", 0), Wish(2, "a", 0)},
     {Wish(3, "a", 4, 100)},
     10,
     {}},
    {"half of its time is gone",
     {Wish(1, "a", 0), Wish(2, "a", 0)},
     {Wish(3, "a", 0, 100)},
     51,
     Lends(2, 3)},
    {"little more than its service is left",
     {Wish(1, "a", 0), Wish(2, "a", 0)},
     {Wish(3, "a", 4, 11, 900)},
     10,
     Lends(2, 3)},
    {"the latest deadline lends",
     {Wish(1, "a", 0, 90), Wish(2, "a", 0, 80)},
     {Wish(3, "a", 0, 20)},
     15,
     Lends(1, 3)},
    {"earlier deadlines do not lend",
     {Wish(1, "a", 0, 19), Wish(2, "a", 0, 18)},
     {Wish(3, "a", 0, 20)},
     15,
     {}},
    {"a starved tenant",
     {Wish(1, "a", 0), Wish(2, "a", 0)},
     {Wish(3, "a", 1), Wish(4, "b", 5)},
     6.5,
     Lends(2, 4)},
    {"a tenant that has not waited long",
     {Wish(1, "a", 0), Wish(2, "a", 0)},
     {Wish(3, "b", 5)},
     5.5,
     {}},
    {"both have their share",
     {Wish(1, "a", 0), Wish(2, "b", 0)},
     {Wish(3, "a", 0), Wish(4, "b", 0)},
     9,
     {}},
    {"who is at risk himself does not lend to the starved",
     {Wish(1, "a", 0, 12), Wish(2, "a", 0, 13)},
     {Wish(3, "b", 0)},
     10,
     {}},
};

TEST(Admission, PreemptTable) {
  for (const PreemptCase& c : kPreempt) {
    Admission admission({.slots = 2, .max_parked = 4});
    for (const auto& request : c.running) admission.Enqueue(request);
    ASSERT_EQ(PopAll(&admission, At(0)).size(), c.running.size());
    for (const auto& request : c.waiting) admission.Enqueue(request);
    for (const auto& request : c.running) admission.Charge(request.ticket, 10, 1);
    const auto swap = admission.Preempt(At(c.now), Costs());
    EXPECT_TRUE(swap == c.expected) << c.name << ": " << (swap.has_value() ? swap->out : 0)
                                    << " lends to " << (swap.has_value() ? swap->in : 0);
    EXPECT_EQ(admission.parked(), c.expected.has_value()) << c.name;
    EXPECT_EQ(admission.waiting(), static_cast<int64_t>(c.waiting.size())) << c.name;
  }
}

TEST(Admission, ASlotIsKeptForAWhile) {
  Admission admission({.slots = 1, .max_parked = 4, .least_stay = absl::Milliseconds(200)});
  admission.Enqueue(Wish(1, "a", 0));
  ASSERT_EQ(admission.Pop(At(1)), 1u);
  admission.Enqueue(Wish(2, "a", 0, 2));
  EXPECT_EQ(admission.Preempt(At(1.1), Costs()).has_value(), false);
  EXPECT_EQ(admission.Preempt(At(1.3), Costs())->in, 2u);
}

TEST(Admission, ParkedRowsAreBounded) {
  Admission admission({.slots = 2, .max_parked = 1});
  for (Ticket t = 1; t <= 2; ++t) admission.Enqueue(Wish(t, "a", 0));
  PopAll(&admission, At(0));
  for (Ticket t = 3; t <= 4; ++t) admission.Enqueue(Wish(t, "a", 0, 6));
  EXPECT_TRUE(admission.Preempt(At(5), Costs()).has_value());
  EXPECT_EQ(admission.parked(), 1);
  EXPECT_FALSE(admission.Preempt(At(5.5), Costs()).has_value());
}

TEST(Admission, NoTwoRowsTakeTurnsAtCopying) {
  // Two tenants and one slot: it changes hands about once a second, not once a step.
  Admission admission({.slots = 1, .max_parked = 4});
  admission.Enqueue(Wish(1, "a", 0));
  admission.Enqueue(Wish(2, "b", 0));
  ASSERT_EQ(admission.Pop(At(0)), 1u);
  Ticket holder = 1;
  int swaps = 0;
  std::map<Ticket, int> steps;
  for (int step = 0; step < 1000; ++step) {  // of 20 ms
    admission.Charge(holder, 0, 1);
    ++steps[holder];
    if (const auto swap = admission.Preempt(At(step * 0.02), Costs())) {
      ASSERT_EQ(swap->out, holder);
      holder = swap->in;
      ++swaps;
    }
  }
  EXPECT_GE(swaps, 15);
  EXPECT_LE(swaps, 20);
  EXPECT_NEAR(steps[1], 500, 60);
}

// ---- everything at once

TEST(Admission, RandomOperationsKeepTheBooks) {
  std::mt19937 random(7);
  const AdmissionOptions options = {.slots = 4, .max_parked = 6};
  Admission admission(options);
  std::map<Ticket, Admission::Request> waiting;  // for their first slot
  std::map<Ticket, Admission::Request> again;    // for another one
  std::set<Ticket> holding, resting;
  Ticket next = 1;
  double now = 0;
  const auto any = [&](const auto& from) {
    return std::next(from.begin(), random() % from.size());
  };
  for (int i = 0; i < 50000; ++i) {
    now += 0.01;
    switch (random() % 8) {
      case 0:
      case 1: {
        if (waiting.size() > 40) break;
        const char* tenants[] = {"a", "b", "c"};
        auto wish = Wish(next++, tenants[random() % 3], now,
                         random() % 3 == 0 ? now + 1 + random() % 30 : kNever, random() % 500);
        waiting[wish.ticket] = wish;
        admission.Enqueue(wish);
        break;
      }
      case 2: {
        if (static_cast<int>(holding.size()) >= options.slots) break;
        const auto ticket = admission.Pop(At(now));
        ASSERT_EQ(ticket.has_value(), !waiting.empty() || !again.empty());
        if (!ticket.has_value()) break;
        ASSERT_EQ(waiting.erase(*ticket) + again.erase(*ticket), 1u);
        holding.insert(*ticket);
        break;
      }
      case 3: {
        const auto swap = admission.Preempt(At(now), Costs());
        if (!swap.has_value()) break;
        ASSERT_EQ(holding.erase(swap->out), 1u);
        ASSERT_EQ(waiting.erase(swap->in) + again.erase(swap->in), 1u);
        holding.insert(swap->in);
        again[swap->out] = {};
        break;
      }
      case 4:
        if (holding.empty()) break;
        admission.Charge(*any(holding), random() % 20, random() % 2);
        break;
      case 5: {
        auto& set = random() % 2 ? holding : resting;
        if (set.empty()) break;
        const Ticket ticket = *any(set);
        set.erase(ticket);
        if (&set == &resting) {
          admission.Unpark(ticket, At(now));
          again[ticket] = {};
        } else if (resting.size() + again.size() < 6) {
          admission.Park(ticket, At(now));
          resting.insert(ticket);
        } else {
          ASSERT_TRUE(admission.Forget(ticket));
        }
        break;
      }
      case 6: {
        if (waiting.empty()) break;
        const auto it = any(waiting);
        ASSERT_TRUE(admission.Forget(it->first));
        waiting.erase(it);
        break;
      }
      case 7:
        while (const auto overdue = admission.NextOverdue(At(now), Costs())) {
          ASSERT_EQ(waiting.erase(overdue->ticket), 1u);
          ASSERT_TRUE(admission.Forget(overdue->ticket));
        }
        break;
    }
    ASSERT_EQ(admission.waiting(), static_cast<int64_t>(waiting.size() + again.size()));
    ASSERT_EQ(admission.parked(), static_cast<int32_t>(resting.size() + again.size()));
  }
  std::vector<Ticket> order;
  admission.Order(&order);
  EXPECT_EQ(order.size(), waiting.size() + again.size());
  EXPECT_GT(next, 1000u);
}

TEST(Admission, ThousandsWaitAtLittleCost) {
  // Not a measurement: what would be linear in those who wait takes seconds here.
  Admission admission({});
  const Ticket n = 50000;
  for (Ticket t = 1; t <= n; ++t) {
    admission.Enqueue(Wish(t, std::to_string(t % 100).c_str(), 0, t % 2 ? kNever : 1e6 + t));
  }
  for (Ticket t = n; t > n / 2; --t) ASSERT_TRUE(admission.Forget(t));
  EXPECT_EQ(PopAll(&admission, At(1)).size(), n / 2);
}

}  // namespace
}  // namespace skein::engine
