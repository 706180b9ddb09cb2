#include "engine/store/waiting_lines.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "engine/base/check.h"

namespace skein::engine {

uint64_t WaitingLines::Join(Place place) {
  Line& line = lines_[place.request.key];
  if (static_cast<int64_t>(line.size()) >= max_per_line_) {
    if (line.empty()) lines_.erase(place.request.key);
    return 0;
  }
  const uint64_t ticket = next_ticket_++;
  line.push_back(ticket);
  places_.emplace(ticket, std::move(place));
  return ticket;
}

const WaitingLines::Place* WaitingLines::Find(uint64_t ticket) const {
  const auto it = places_.find(ticket);
  return it == places_.end() ? nullptr : &it->second;
}

bool WaitingLines::IsFirst(uint64_t ticket) const {
  return lines_.at(places_.at(ticket).request.key).front() == ticket;
}

int64_t WaitingLines::Ahead(uint64_t ticket) const {
  const Line& line = lines_.at(places_.at(ticket).request.key);
  return std::distance(line.begin(), std::find(line.begin(), line.end(), ticket));
}

void WaitingLines::Leave(uint64_t ticket) {
  const auto place = places_.find(ticket);
  SKEIN_CHECK(place != places_.end());
  const auto line = lines_.find(place->second.request.key);
  line->second.remove(ticket);
  if (line->second.empty()) lines_.erase(line);
  places_.erase(place);
}

void WaitingLines::WakeFirst(const ConversationKey& key) const {
  const auto line = lines_.find(key);
  if (line != lines_.end()) places_.at(line->second.front()).wake();
}

int64_t WaitingLines::WaitingFor(const ConversationKey& key) const {
  const auto line = lines_.find(key);
  return line == lines_.end() ? 0 : static_cast<int64_t>(line->second.size());
}

}  // namespace skein::engine
