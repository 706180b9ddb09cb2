// A step allocates nothing after warm-up: operator new is counted on the engine thread.

#include <cstdlib>
#include <new>

#include "gtest/gtest.h"
#include "tests/engine/rwkv7_harness.h"

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
void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  ++allocations;
  return std::malloc(bytes);
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }

namespace skein::engine {
namespace {

// Counts the allocations of the engine thread from one step to the next, once it is warm.
class StepAllocations final : public EngineObserver {
 public:
  StepAllocations(int64_t warm, int64_t end) : warm_(warm), end_(end) { counts_.reserve(end); }
  void OnStep(const StepReport&) override {
    if (steps_ >= warm_ && steps_ < end_) counts_.push_back(allocations - before_);
    ++steps_;
    // As slow as a large model, so that the output shard keeps up and its queue stays small.
    absl::SleepFor(absl::Microseconds(100));
    before_ = allocations;
  }
  void OnRequestDone(const RequestReport&) override {}
  const std::vector<int64_t>& counts() const { return counts_; }

 private:
  const int64_t warm_, end_;
  int64_t steps_ = 0, before_ = 0;
  std::vector<int64_t> counts_;
};

std::vector<int64_t> AllocationsPerStep(EngineHarness* h, std::vector<GenerateRequest> requests,
                                        int64_t warm, int64_t end) {
  StepAllocations observer(warm, end);
  h->observer = &observer;
  h->Start();
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (const GenerateRequest& request : requests) sinks.push_back(h->Submit(request));
  for (const auto& sink : sinks) sink->Wait();
  h->engine.reset();
  return observer.counts();
}

int64_t Sum(const std::vector<int64_t>& counts) {
  int64_t sum = 0;
  for (const int64_t n : counts) sum += n;
  return sum;
}

// Everything that a request can ask of sampling and stopping, without an end before its time.
std::vector<GenerateRequest> Decoding(EngineHarness* h, int32_t tokens) {
  std::vector<GenerateRequest> requests;
  for (int i = 0; i < 8; ++i) {
    GenerateRequest request = h->Request({1 + i, 2, 3});
    request.stopping.max_tokens = tokens;
    request.sampling.temperature = 1;
    request.sampling.frequency_penalty = 0.1f;
    request.sampling.repetition_penalty = 1.1f;
    request.sampling.penalty_decay = 0.99f;
    request.want_logprobs = true;
    request.top_logprobs = kernels::kMaxTopLogprobs;
    // Partial matches come and go in every row all the time; none completes.
    for (int first = 1; first < 240; ++first) {
      request.stopping.stop_strings.push_back(std::string(1, static_cast<char>(first)) +
                                              "\xf1\xf2\xf3\xf4\xf5\xf6");
    }
    requests.push_back(request);
  }
  return requests;
}

std::vector<GenerateRequest> Prefilling(EngineHarness* h, int32_t tokens) {
  h->options.max_prefill_chunk = 4;
  std::vector<GenerateRequest> requests;
  for (int i = 0; i < 4; ++i) requests.push_back(h->Request(std::vector<int32_t>(tokens, 1 + i)));
  return requests;
}

TEST(Allocation, DecodeStepsAllocateNothing) {
  Harness h;
  const auto counts = AllocationsPerStep(&h, Decoding(&h, 2000), 300, 1500);
  ASSERT_EQ(counts.size(), 1200u);
  EXPECT_EQ(Sum(counts), 0);
}

TEST(Allocation, PrefillStepsAllocateNothing) {
  Harness h;
  const auto counts = AllocationsPerStep(&h, Prefilling(&h, 4000), 50, 500);
  ASSERT_EQ(counts.size(), 450u);
  EXPECT_EQ(Sum(counts), 0);
}

// The same of a real model, whose step runs all the operators on two threads.
class Rwkv7Allocation : public ::testing::TestWithParam<DType> {
 protected:
  RwkvHarness h_{"", GetParam()};
};

TEST_P(Rwkv7Allocation, DecodeStepsAllocateNothing) {
  const auto counts = AllocationsPerStep(&h_, Decoding(&h_, 260), 100, 250);
  ASSERT_EQ(counts.size(), 150u);
  EXPECT_EQ(Sum(counts), 0);
}

TEST_P(Rwkv7Allocation, PrefillStepsAllocateNothing) {
  const auto counts = AllocationsPerStep(&h_, Prefilling(&h_, 500), 20, 100);
  ASSERT_EQ(counts.size(), 80u);
  EXPECT_EQ(Sum(counts), 0);
}

INSTANTIATE_TEST_SUITE_P(Weights, Rwkv7Allocation,
                         ::testing::Values(DType::kF32, DType::kBF16, DType::kI8, DType::kI8A8));

}  // namespace
}  // namespace skein::engine
