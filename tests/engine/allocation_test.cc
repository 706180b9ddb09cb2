// A step allocates nothing after warm-up: operator new is counted on the engine thread.

#include <cstdlib>
#include <new>

#include "gtest/gtest.h"
#include "tests/engine/engine_harness.h"

namespace {
thread_local int64_t allocations = 0;
}  // namespace

// GCC 12 under the sanitizers takes the inlined free below for the partner of the library's new.
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"

void* operator new(size_t bytes) {
  ++allocations;
  if (void* p = std::malloc(bytes)) return p;
  throw std::bad_alloc();
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }

namespace skein::engine {
namespace {

// Allocations of the engine thread between one step and the next, per step, once warm.
std::vector<int64_t> AllocationsPerStep(Harness* h, std::vector<GenerateRequest> requests,
                                        int64_t warm, int64_t end) {
  std::vector<int64_t> counts;
  counts.reserve(end);
  int64_t before = 0;
  h->model.before_step = [&](const StepBatch&) {
    if (h->model.steps >= warm && h->model.steps < end) counts.push_back(allocations - before);
    // As slow as a real model, so that the output shard keeps up and its queue stays small.
    absl::SleepFor(absl::Microseconds(100));
    before = allocations;
  };
  h->Start();
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (const GenerateRequest& request : requests) sinks.push_back(h->Submit(request));
  for (const auto& sink : sinks) sink->Wait();
  h->engine.reset();
  return counts;
}

int64_t Sum(const std::vector<int64_t>& counts) {
  int64_t sum = 0;
  for (const int64_t n : counts) sum += n;
  return sum;
}

TEST(Allocation, DecodeStepsAllocateNothing) {
  Harness h;
  std::vector<GenerateRequest> requests;
  for (int i = 0; i < 8; ++i) {
    GenerateRequest request = h.Request({1 + i, 2, 3});
    request.stopping.max_tokens = 2000;
    request.sampling.temperature = 1;
    request.sampling.frequency_penalty = 0.1f;
    request.sampling.repetition_penalty = 1.1f;
    request.sampling.penalty_decay = 0.99f;
    request.want_logprobs = true;
    // Partial matches come and go in every row all the time; none completes.
    for (int first = 1; first < 240; ++first) {
      request.stopping.stop_strings.push_back(std::string(1, static_cast<char>(first)) +
                                              "\xf1\xf2\xf3\xf4\xf5\xf6");
    }
    requests.push_back(request);
  }
  const auto counts = AllocationsPerStep(&h, requests, 300, 1500);
  ASSERT_EQ(counts.size(), 1200u);
  EXPECT_EQ(Sum(counts), 0);
}

TEST(Allocation, PrefillStepsAllocateNothing) {
  Harness h;
  h.options.max_prefill_chunk = 4;
  std::vector<GenerateRequest> requests;
  for (int i = 0; i < 4; ++i) requests.push_back(h.Request(std::vector<int32_t>(4000, 1 + i)));
  const auto counts = AllocationsPerStep(&h, requests, 50, 500);
  ASSERT_EQ(counts.size(), 450u);
  EXPECT_EQ(Sum(counts), 0);
}

}  // namespace
}  // namespace skein::engine
