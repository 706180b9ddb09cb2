#pragma once
// One thread that runs what is due: the heart of a load run. What runs there never blocks, so the
// state of the run needs no lock.

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace skein::client {

class Timers {
 public:
  using Clock = std::chrono::steady_clock;
  using Time = Clock::time_point;

  Timers();
  // What has not run by then never does.
  ~Timers();
  Timers(const Timers&) = delete;
  Timers& operator=(const Timers&) = delete;

  // From any thread. What is due runs in order of its time, then of arrival.
  void At(Time when, std::function<void()> what);
  void Soon(std::function<void()> what) { At(Time::min(), std::move(what)); }

 private:
  struct Entry {
    Time when;
    uint64_t number;
    std::function<void()> what;
  };
  static bool Later(const Entry& a, const Entry& b) {
    return a.when != b.when ? a.when > b.when : a.number > b.number;
  }
  void Run();

  std::mutex mu_;
  std::condition_variable changed_;
  std::vector<Entry> heap_;  // guarded by mu_, like the rest; the earliest in front
  uint64_t next_number_ = 0;
  bool stop_ = false;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace skein::client
