#include "trainer/tensor_memory.h"

#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdlib>
#include <mutex>
#include <new>
#include <unordered_map>
#include <vector>

namespace skein::trainer {
namespace {

constexpr size_t kAlignment = 64, kHugePage = size_t{2} << 20;
// Blocks up to a quarter of this are cut from regions of this size, so that they share huge pages.
constexpr size_t kRegion = size_t{32} << 20;

size_t RoundUp(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

// Sizes between two powers of two are rounded up to one of four, so that similar ones share blocks.
size_t BlockSize(size_t bytes) {
  if (bytes > size_t{1} << 62) throw std::bad_alloc();
  return RoundUp(std::max<size_t>(bytes, 1), std::max(kAlignment, std::bit_ceil(bytes) / 8));
}

class TensorMemory final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* data = Take(BlockSize(bytes));
    return {data, data, &Free, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &Free; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
  int64_t system_bytes() const { return system_bytes_; }

 private:
  // In front of what a tensor gets.
  struct alignas(kAlignment) Header {
    size_t size;  // of what follows
  };
  static_assert(sizeof(Header) == kAlignment);

  static void Free(void* data);

  void* Take(size_t size) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<void*>& free = free_[size];
    if (!free.empty()) {
      void* data = free.back();  // the last one freed: it may still be in a cache
      free.pop_back();
      return data;
    }
    Header* header = new (Cut(sizeof(Header) + size)) Header{size};
    return header + 1;
  }

  // New memory, from the region that is begun or of its own.
  void* Cut(size_t bytes) {
    if (bytes > kRegion / 4) return FromSystem(bytes);
    if (bytes > left_) {
      next_ = static_cast<char*>(FromSystem(kRegion));
      left_ = kRegion;
    }
    void* cut = next_;
    next_ += bytes;
    left_ -= bytes;
    return cut;
  }

  void* FromSystem(size_t bytes) {
    void* p = std::aligned_alloc(kHugePage, RoundUp(bytes, kHugePage));
    if (p == nullptr) throw std::bad_alloc();
    // Advice: where the system gives none, ordinary pages do the same work.
    madvise(p, RoundUp(bytes, kHugePage), MADV_HUGEPAGE);
    system_bytes_ += static_cast<int64_t>(bytes);
    return p;
  }

  std::mutex mutex_;
  std::unordered_map<size_t, std::vector<void*>> free_;  // under mutex_, by size; and these two:
  char* next_ = nullptr;
  size_t left_ = 0;
  std::atomic<int64_t> system_bytes_ = 0;
};

// Never destroyed: tensors may outlive everything else.
TensorMemory& Memory() {
  static TensorMemory& memory = *new TensorMemory;
  return memory;
}

void TensorMemory::Free(void* data) {
  TensorMemory& memory = Memory();
  const size_t size = (static_cast<Header*>(data) - 1)->size;
  const std::lock_guard<std::mutex> lock(memory.mutex_);
  memory.free_[size].push_back(data);
}

}  // namespace

void UseTensorMemory() { c10::SetCPUAllocator(&Memory(), /*priority=*/1); }

int64_t TensorMemoryBytes() { return Memory().system_bytes(); }

}  // namespace skein::trainer
