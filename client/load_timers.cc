#include "client/load_timers.h"

#include <algorithm>
#include <utility>

namespace skein::client {

Timers::Timers() : thread_([this] { Run(); }) {}

Timers::~Timers() {
  {
    const std::lock_guard lock(mu_);
    stop_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

void Timers::At(Time when, std::function<void()> what) {
  bool first;
  {
    const std::lock_guard lock(mu_);
    heap_.push_back({when, next_number_++, std::move(what)});
    std::push_heap(heap_.begin(), heap_.end(), Later);
    first = heap_.front().number == next_number_ - 1;
  }
  if (first) changed_.notify_one();
}

void Timers::Run() {
  std::unique_lock lock(mu_);
  while (!stop_) {
    if (heap_.empty()) {
      changed_.wait(lock);
      continue;
    }
    const Time due = heap_.front().when;
    if (due > Clock::now()) {
      changed_.wait_until(lock, due);
      continue;
    }
    std::pop_heap(heap_.begin(), heap_.end(), Later);
    const std::function<void()> what = std::move(heap_.back().what);
    heap_.pop_back();
    lock.unlock();
    what();
    lock.lock();
  }
}

}  // namespace skein::client
