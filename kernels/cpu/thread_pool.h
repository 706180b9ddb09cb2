#pragma once
// The engine's pool: threads that spin for work between the regions of a step and sleep between
// steps.
//
// A region is cut into at most one piece per thread. Piece 0 runs on the caller; piece i is offered
// to worker i through the worker's own slot. When the caller is done with its piece it takes back
// every piece that its worker has not begun, so a region never waits for a thread that sleeps or
// that the kernel has put aside for another process. Which thread runs a piece does not change what
// the piece computes.

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "kernels/device.h"

namespace skein::kernels {

class ThreadPool final : public Executor {
 public:
  // num_threads >= 1 counts the caller of ParallelFor, so num_threads - 1 threads are started.
  // cpus: empty, or the CPU that each is bound to; the first is the caller's (BindCaller).
  explicit ThreadPool(int num_threads, std::vector<int> cpus = {});
  ~ThreadPool() override;
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const override { return num_threads_; }
  // Binds the calling thread to the first CPU, where threads are bound.
  void BindCaller() const;
  // May be called by several threads at a time: while one region runs, another caller's runs on
  // that caller alone.
  void ParallelFor(int64_t n, int64_t grain,
                   absl::FunctionRef<void(int64_t begin, int64_t end)> body) override;

 private:
  // What a worker's slot says. The worker and the caller race from kReady to kIdle; who wins runs
  // the piece.
  enum : uint32_t { kIdle, kReady, kParked, kStop };
  struct alignas(128) Slot {
    std::atomic<uint32_t> state{kIdle};
  };
  // Constant while a piece of the region is unfinished.
  struct Region {
    const absl::FunctionRef<void(int64_t, int64_t)>* body = nullptr;
    int64_t n = 0;
    int64_t grain = 1;
    int64_t units = 0;  // ceil(n / grain)
    int64_t pieces = 0;
  };

  void StopWorkers();
  void WorkerLoop(int index);
  // Waits for kReady or kStop: spins, then sleeps.
  uint32_t AwaitWork(Slot& slot);
  void RunPiece(int64_t piece) const;
  void AwaitWorkers();

  const int num_threads_;
  const std::vector<int> cpus_;
  Region region_;                                // written by the caller between regions
  alignas(128) std::atomic<int> unfinished_{0};  // pieces offered to workers and not done yet
  alignas(128) std::atomic<bool> busy_{false};
  std::unique_ptr<Slot[]> slots_;  // [num_threads], the first is unused
  std::vector<std::thread> workers_;
};

}  // namespace skein::kernels
