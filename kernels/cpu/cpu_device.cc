// The CPU behind kernels/device.h: memory is the process's own, copies are memcpy, an operator has
// finished when its call returns.

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cpu/host_limits.h"
#include "kernels/cpu/pinning.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/cpu/tiers.h"
#include "kernels/device.h"
#include "kernels/ops.h"

namespace skein::kernels {
namespace {

constexpr size_t kAlignment = 64;
// Large blocks ask for huge pages: reading weights through 4 KiB pages takes up to twice as long.
constexpr size_t kHugePage = size_t{2} << 20;
// More threads than any machine has: a larger number is a mistake in a config.
constexpr int kMaxThreads = 1024;

class CpuStream final : public Stream {
 public:
  explicit CpuStream(ThreadPool& pool) : pool_(pool) {}
  void Synchronize() override {}
  Executor& executor() override { return pool_; }

 private:
  ThreadPool& pool_;  // the device's; streams must not outlive it
};

class CpuEvent final : public Event {
 public:
  void Record(Stream&) override {}
  void Synchronize() override {}
};

class CpuDevice final : public Device {
 public:
  CpuDevice(const Tier& tier, int threads, std::vector<int> cpus)
      : ops_(tier.ops()), pool_(threads, std::move(cpus)) {
    info_.name = "cpu";
    info_.tier = tier.name;
    info_.threads = threads;
    info_.memory_bytes = UsableMemoryBytes();
  }

  const DeviceInfo& info() const override { return info_; }
  void* Allocate(size_t bytes) override {
    const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    if (rounded < bytes) return nullptr;
    if (rounded < kHugePage) {
      return std::aligned_alloc(kAlignment, rounded == 0 ? kAlignment : rounded);
    }
    void* p = nullptr;
    if (posix_memalign(&p, kHugePage, rounded) != 0) return nullptr;
    // Advice: where the system gives none, ordinary pages do the same work. The part of a page at
    // the end stays with ordinary ones.
    madvise(p, rounded / kHugePage * kHugePage, MADV_HUGEPAGE);
    return p;
  }
  void Free(void* p) override { std::free(p); }
  void* AllocateHost(size_t bytes) override { return Allocate(bytes); }
  void FreeHost(void* p) override { Free(p); }
  void CopyToDevice(void* device, const void* host, size_t bytes, Stream&) override {
    Copy(device, host, bytes);
  }
  void CopyToHost(void* host, const void* device, size_t bytes, Stream&) override {
    Copy(host, device, bytes);
  }
  void CopyOnDevice(void* to, const void* from, size_t bytes, Stream&) override {
    Copy(to, from, bytes);
  }
  void Zero(void* device, size_t bytes, Stream&) override {
    if (bytes > 0) std::memset(device, 0, bytes);
  }
  std::unique_ptr<Stream> NewStream() override { return std::make_unique<CpuStream>(pool_); }
  void EnterThread() override { pool_.BindCaller(); }
  std::unique_ptr<Event> NewEvent() override { return std::make_unique<CpuEvent>(); }
  const OpTable& ops() const override { return ops_; }

 private:
  static void Copy(void* to, const void* from, size_t bytes) {
    if (bytes > 0) std::memcpy(to, from, bytes);
  }

  const OpTable& ops_;
  ThreadPool pool_;
  DeviceInfo info_;
};

}  // namespace

std::unique_ptr<Device> NewCpuDevice(const CpuOptions& options, std::string* error) {
  const char* forced = std::getenv("SKEIN_CPU");
  const bool from_environment = options.tier.empty() && forced != nullptr && *forced != '\0';
  const Tier* tier = FindTier(from_environment ? forced : options.tier, error);
  if (tier == nullptr) {
    if (from_environment) *error = "environment variable SKEIN_CPU: " + *error;
    return nullptr;
  }
  if (options.threads < 0 || options.threads > kMaxThreads) {
    *error = "the number of CPU threads is " + std::to_string(options.threads) +
             "; it must be 0 (as many as the process may use) to " + std::to_string(kMaxThreads);
    return nullptr;
  }
  std::vector<int> cpus;
  if (!options.pin.empty() && !ChooseCpus(options.pin, AllowedCpus(), &cpus, error)) return nullptr;
  int threads = options.threads > 0 ? options.threads : UsableThreads();
  const bool listed = !cpus.empty() && options.pin != "auto";
  if (options.threads == 0 && listed) threads = static_cast<int>(cpus.size());
  if (!cpus.empty() && threads > static_cast<int>(cpus.size())) {
    *error = std::to_string(threads) + " threads cannot be bound to " +
             std::to_string(cpus.size()) + " CPUs, one each";
    return nullptr;
  }
  try {
    return std::make_unique<CpuDevice>(*tier, threads, std::move(cpus));
  } catch (const std::exception& e) {  // no more threads allowed, or not there
    *error = "cannot start " + std::to_string(threads) + " CPU threads: " + e.what();
    return nullptr;
  }
}

}  // namespace skein::kernels
