#include "kernels/cpu/thread_pool.h"

#include <immintrin.h>
#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>
#include <utility>

#include "kernels/cpu/pinning.h"

namespace skein::kernels {
namespace {

// Longer than the gap between two regions of a step, much shorter than the gap between two
// requests.
constexpr std::chrono::microseconds kSpin{50};
// How long the caller waits for the last chunks of others before it sleeps. Who has not come back
// by then was mostly put aside by the system, and goes on when the caller has left it a processor.
constexpr std::chrono::microseconds kSpinAtEnd{5};
// More make a region end more evenly beside other processes, and a chunk cost more than its work.
constexpr int64_t kChunksOfPiece = 8;

// Calls done() until it is true or the spinning time is over; returns the last answer.
template <typename Done>
bool SpinUntil(const Done& done, std::chrono::microseconds time) {
  const auto deadline = std::chrono::steady_clock::now() + time;
  do {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
      _mm_pause();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return done();
}

}  // namespace

ThreadPool::ThreadPool(int num_threads, std::vector<int> cpus)
    : num_threads_(num_threads),
      cpus_(std::move(cpus)),
      slots_(std::make_unique<Slot[]>(num_threads)),
      pieces_(std::make_unique<Piece[]>(num_threads)) {
  workers_.reserve(num_threads - 1);
  try {
    for (int i = 1; i < num_threads; ++i) {
      workers_.emplace_back([this, i] { WorkerLoop(i); });
      if (!cpus_.empty() && !PinThread(workers_.back().native_handle(), cpus_[i])) {
        throw std::runtime_error("CPU " + std::to_string(cpus_[i]) + " takes no thread");
      }
    }
  } catch (...) {  // the system has no thread left, or took the CPU away
    StopWorkers();
    throw;
  }
}

void ThreadPool::BindCaller() const {
  // The mask was asked when the CPUs were chosen; who has narrowed it since decides.
  if (!cpus_.empty()) PinThread(pthread_self(), cpus_[0]);
}

ThreadPool::~ThreadPool() { StopWorkers(); }

void ThreadPool::StopWorkers() {
  for (int i = 1; i < num_threads_; ++i) {
    slots_[i].state.store(kStop, std::memory_order_release);
    slots_[i].state.notify_one();
  }
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::ParallelFor(int64_t n, int64_t grain,
                             absl::FunctionRef<void(int64_t begin, int64_t end)> body) {
  if (n <= 0) return;
  const int64_t units = (n + grain - 1) / grain;
  const int64_t pieces = units < num_threads_ ? units : num_threads_;
  if (pieces == 1 || busy_.exchange(true, std::memory_order_acquire)) {
    body(0, n);
    return;
  }
  const int64_t chunks = std::min(units, pieces * kChunksOfPiece);
  region_ = {&body, n, grain, units, pieces, chunks};
  for (int64_t i = 0; i < pieces; ++i) {
    pieces_[i].next.store(chunks * i / pieces, std::memory_order_relaxed);
    pieces_[i].end = chunks * (i + 1) / pieces;
  }
  workers_in_.store(static_cast<int>(pieces) - 1, std::memory_order_relaxed);
  for (int64_t i = 1; i < pieces; ++i) {
    std::atomic<uint32_t>& state = slots_[i].state;
    if (state.exchange(kReady, std::memory_order_acq_rel) == kParked) state.notify_one();
  }
  RunPieces(0);
  for (int64_t i = 1; i < pieces; ++i) {
    uint32_t expected = kReady;
    if (slots_[i].state.compare_exchange_strong(expected, kIdle, std::memory_order_relaxed)) {
      workers_in_.fetch_sub(1, std::memory_order_relaxed);
    }
  }
  AwaitWorkers();
  busy_.store(false, std::memory_order_release);
}

void ThreadPool::AwaitWorkers() {
  if (SpinUntil([this] { return workers_in_.load(std::memory_order_acquire) == 0; }, kSpinAtEnd)) {
    return;
  }
  for (int left = workers_in_.load(std::memory_order_acquire); left != 0;
       left = workers_in_.load(std::memory_order_acquire)) {
    workers_in_.wait(left, std::memory_order_acquire);
  }
}

// The pieces from `first` on, all of them in a circle.
void ThreadPool::RunPieces(int64_t first) {
  for (int64_t i = first; i < region_.pieces; ++i) RunChunks(pieces_[i]);
  for (int64_t i = 0; i < first; ++i) RunChunks(pieces_[i]);
}

void ThreadPool::RunChunks(Piece& piece) {
  const Region& r = region_;
  // Asked first, so that those who only look do not pull the line from the one who works.
  while (piece.next.load(std::memory_order_relaxed) < piece.end) {
    const int64_t chunk = piece.next.fetch_add(1, std::memory_order_relaxed);
    if (chunk >= piece.end) return;
    const int64_t begin = r.units * chunk / r.chunks * r.grain;
    const int64_t end = r.units * (chunk + 1) / r.chunks * r.grain;
    (*r.body)(begin, std::min(end, r.n));
  }
}

uint32_t ThreadPool::AwaitWork(Slot& slot) {
  for (;;) {
    uint32_t seen = kIdle;
    if (SpinUntil([&] { return (seen = slot.state.load(std::memory_order_relaxed)) != kIdle; },
                  kSpin)) {
      return seen;
    }
    seen = kIdle;
    if (!slot.state.compare_exchange_strong(seen, kParked, std::memory_order_relaxed)) return seen;
    slot.state.wait(kParked, std::memory_order_relaxed);
  }
}

void ThreadPool::WorkerLoop(int index) {
  pthread_setname_np(pthread_self(), "skein-cpu");
  Slot& slot = slots_[index];
  for (;;) {
    if (AwaitWork(slot) == kStop) return;
    uint32_t expected = kReady;
    // Fails when the caller has called it off.
    if (!slot.state.compare_exchange_strong(expected, kIdle, std::memory_order_acquire)) continue;
    RunPieces(index);
    if (workers_in_.fetch_sub(1, std::memory_order_release) == 1) workers_in_.notify_one();
  }
}

}  // namespace skein::kernels
