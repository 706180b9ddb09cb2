#include "engine/scheduler.h"

#include <algorithm>

namespace skein::engine {
namespace {

// Even when the target leaves no room: a few tokens cost little more than one, because the weights
// are read anyway.
constexpr int64_t kLeastPrefill = 16;
// While nobody waits for a next token only cancellation and new arrivals wait for the step.
constexpr int kAloneFactor = 4;

bool IsDecode(const RowDemand& row) {
  return !row.blocked && row.remaining == 1 && row.unscored == 0;
}
bool IsPrefill(const RowDemand& row) { return !row.blocked && row.remaining > 0 && !IsDecode(row); }

// A prediction is a mean, and the target is to be kept by nearly all steps: each miss lowers the
// aim and each hit raises it a little, so that about one step in a hundred misses.
constexpr double kLowerAim = 0.9, kRaiseAim = 0.001, kLeastAim = 0.25;

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options) : options_(options) {}

void Scheduler::Learn(int32_t decode_rows, int32_t prefill_tokens, absl::Duration measured) {
  cost_.Learn(decode_rows, prefill_tokens, measured);
  if (decode_rows == 0 || prefill_tokens == 0) return;
  aim_ = measured > options_.target ? std::max(kLeastAim, aim_ * kLowerAim)
                                    : std::min(1.0, aim_ + kRaiseAim);
}

void Scheduler::Plan(std::span<const RowDemand> rows, std::vector<StepShare>* shares) {
  shares->clear();
  ++turn_;
  Room room{options_.max_rows, options_.max_step_tokens, options_.max_logits, 0};
  AddDecodes(rows, &room, shares);
  const int32_t decodes = static_cast<int32_t>(shares->size());
  const absl::Duration target =
      decodes > 0 ? aim_ * options_.target : kAloneFactor * options_.target;
  room.prefill = std::max(kLeastPrefill, cost_.PrefillThatFits(decodes, target));
  AddPrefill(rows, &room, shares);
  std::sort(shares->begin(), shares->end(),
            [](const StepShare& a, const StepShare& b) { return a.row < b.row; });
}

void Scheduler::AddDecodes(std::span<const RowDemand> rows, Room* room,
                           std::vector<StepShare>* shares) {
  const int64_t n = static_cast<int64_t>(rows.size());
  const int64_t ready = std::count_if(rows.begin(), rows.end(), IsDecode);
  int64_t fit = std::min({room->rows, room->tokens, room->logits});
  // When they do not all fit, or would leave no place at all for prefill, they take turns.
  const bool prefill_waits = std::any_of(rows.begin(), rows.end(), IsPrefill);
  if (prefill_waits && fit > 1 && ready >= fit) fit -= 1;
  const int64_t first = ready > fit ? static_cast<int64_t>(turn_ * fit % n) : 0;
  for (int64_t i = 0; i < n && fit > 0; ++i) {
    const int64_t row = (first + i) % n;
    if (!IsDecode(rows[row])) continue;
    shares->push_back({static_cast<int32_t>(row), 1});
    --fit;
  }
  const int64_t taken = static_cast<int64_t>(shares->size());
  room->rows -= taken;
  room->tokens -= taken;
  room->logits -= taken;
}

void Scheduler::AddPrefill(std::span<const RowDemand> rows, Room* room,
                           std::vector<StepShare>* shares) {
  for (size_t row = 0; row < rows.size(); ++row) {
    const RowDemand& demand = rows[row];
    if (!IsPrefill(demand)) continue;
    if (room->rows <= 0) return;
    int64_t tokens = std::min(
        {demand.remaining, room->tokens, room->prefill, int64_t{options_.max_prefill_chunk}});
    tokens = std::min(tokens, demand.unscored + room->logits);
    if (tokens <= 0) continue;
    shares->push_back({static_cast<int32_t>(row), static_cast<int32_t>(tokens)});
    room->rows -= 1;
    room->tokens -= tokens;
    room->prefill -= tokens;
    room->logits -= std::max<int64_t>(0, tokens - demand.unscored);
  }
}

}  // namespace skein::engine
