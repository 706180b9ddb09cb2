#pragma once
// The engine's pool: threads that spin for work between the regions of a step and sleep between
// steps.
//
// A region is cut into at most one piece per thread, and each piece into a few chunks. Piece 0 runs
// on the caller; piece i is offered to worker i through the worker's own slot. Who is done with its
// own piece goes on with the chunks of the others that nobody has begun, so a region waits for no
// thread that sleeps, and for one that the kernel has put aside for another process no longer than
// a chunk takes. Which thread runs a chunk does not change what the chunk computes.

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
  // What a worker's slot says. The worker and the caller race from kReady to kIdle: the worker has
  // joined the region, or the caller has called it off.
  enum : uint32_t { kIdle, kReady, kParked, kStop };
  struct alignas(128) Slot {
    std::atomic<uint32_t> state{kIdle};
  };
  // The chunks of a piece that nobody has begun: [next, end).
  struct alignas(128) Piece {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };
  // Constant while a worker is in the region.
  struct Region {
    const absl::FunctionRef<void(int64_t, int64_t)>* body = nullptr;
    int64_t n = 0;
    int64_t grain = 1;
    int64_t units = 0;  // ceil(n / grain)
    int64_t pieces = 0;
    int64_t chunks = 0;  // of all pieces
  };

  void StopWorkers();
  void WorkerLoop(int index);
  // Waits for kReady or kStop: spins, then sleeps.
  uint32_t AwaitWork(Slot& slot);
  void RunPieces(int64_t first);
  void RunChunks(Piece& piece);
  void AwaitWorkers();

  const int num_threads_;
  const std::vector<int> cpus_;
  Region region_;                                // written by the caller between regions
  alignas(128) std::atomic<int> workers_in_{0};  // asked into the region, and not out of it yet
  alignas(128) std::atomic<bool> busy_{false};
  std::unique_ptr<Slot[]> slots_;    // [num_threads], the first is unused
  std::unique_ptr<Piece[]> pieces_;  // [num_threads]
  std::vector<std::thread> workers_;
};

}  // namespace skein::kernels
