#pragma once
// The one door to a device: memory, copies, ordering of work, and the operator table. `cpu` is the
// embedded default; another device implements the same door and nothing above it changes.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/functional/function_ref.h"

namespace skein::kernels {

struct OpTable;  // kernels/ops.h

// Memory that this process may use: the machine's, cut to the limit of its control group.
int64_t UsableMemoryBytes();

// How a CPU operator spreads over threads. The engine brings its own spinning pool
// (kernels/cpu/thread_pool.h), the trainer's operators run on at::parallel_for, tests run on
// SerialExecutor.
class Executor {
 public:
  virtual ~Executor() = default;
  virtual int num_threads() const = 0;
  // Calls body(begin, end) on disjoint ranges that cover [0, n); every range but the last starts
  // and ends at a multiple of `grain` (> 0). Returns when all are done. Does not allocate. Called
  // by one thread at a time and never from inside a body.
  virtual void ParallelFor(int64_t n, int64_t grain,
                           absl::FunctionRef<void(int64_t begin, int64_t end)> body) = 0;
};

class SerialExecutor final : public Executor {
 public:
  int num_threads() const override { return 1; }
  void ParallelFor(int64_t n, int64_t, absl::FunctionRef<void(int64_t, int64_t)> body) override {
    if (n > 0) body(0, n);
  }
};

// An ordered queue of device work. On the CPU an operator has finished when its call returns, and
// the stream only carries the executor and scratch memory. One thread uses a stream at a time.
class Stream {
 public:
  virtual ~Stream() = default;
  // Waits until all work queued so far is done.
  virtual void Synchronize() = 0;
  // CPU only: the threads to run on. Other devices do not call it.
  virtual Executor& executor() = 0;
};

// Marks a point in a stream.
class Event {
 public:
  virtual ~Event() = default;
  virtual void Record(Stream& stream) = 0;
  virtual void Synchronize() = 0;
};

struct DeviceInfo {
  std::string name;          // "cpu"
  std::string tier;          // "plain", "avx2", ...: the operator table in use
  int threads = 0;           // of the default stream
  int64_t memory_bytes = 0;  // what the process may use (cgroup limit on the CPU)
};

class Device {
 public:
  virtual ~Device() = default;
  virtual const DeviceInfo& info() const = 0;
  // 64-byte aligned device memory, not cleared; nullptr when there is none left. Free(nullptr) is
  // allowed.
  virtual void* Allocate(size_t bytes) = 0;
  virtual void Free(void* p) = 0;
  // Host memory that this device copies from and to fastest (pinned on a GPU).
  virtual void* AllocateHost(size_t bytes) = 0;
  virtual void FreeHost(void* p) = 0;
  // Asynchronous on `stream`, in the named direction. Source and destination must stay alive until
  // then.
  virtual void CopyToDevice(void* device, const void* host, size_t bytes, Stream& stream) = 0;
  virtual void CopyToHost(void* host, const void* device, size_t bytes, Stream& stream) = 0;
  virtual void CopyOnDevice(void* to, const void* from, size_t bytes, Stream& stream) = 0;
  virtual void Zero(void* device, size_t bytes, Stream& stream) = 0;
  virtual std::unique_ptr<Stream> NewStream() = 0;
  // Called by the thread that computes from now on: where threads are bound to CPUs, this one
  // becomes the first of them.
  virtual void EnterThread() {}
  virtual std::unique_ptr<Event> NewEvent() = 0;
  virtual const OpTable& ops() const = 0;
};

struct CpuOptions {
  int threads = 0;   // 0: as many as the process may use (affinity mask and cgroup quota)
  std::string tier;  // empty: $SKEIN_CPU if set, else the best tier this machine has
  // CPUs that the threads are bound to, one each, in this order: "0-3,8", or "auto": those that the
  // process may use, one of each core first. Empty: the system places them.
  std::string pin = "";
};

// nullptr with *error set: the tier is unknown or this machine does not have it, a CPU is not the
// process's to use, there are more threads than CPUs to bind them to.
std::unique_ptr<Device> NewCpuDevice(const CpuOptions& options, std::string* error);

// Memory of one device, freed with its owner.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Device& device, size_t bytes)
      : device_(&device), data_(device.Allocate(bytes)), bytes_(bytes) {}
  Buffer(Buffer&& o) noexcept { *this = std::move(o); }
  Buffer& operator=(Buffer&& o) noexcept {
    std::swap(device_, o.device_);
    std::swap(data_, o.data_);
    std::swap(bytes_, o.bytes_);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    if (data_ != nullptr) device_->Free(data_);
  }
  void* data() const { return data_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  Device* device_ = nullptr;
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace skein::kernels
