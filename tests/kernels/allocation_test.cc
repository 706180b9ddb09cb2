// No operator allocates after its first call with the largest shape. This program counts every
// operator new.

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "tests/kernels/op_cases.h"

namespace {
std::atomic<int64_t> allocations{0};

void* CountedAllocation(std::size_t size, std::size_t alignment) {
  allocations.fetch_add(1);
  void* p = std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}
}  // namespace

void* operator new(std::size_t size) { return CountedAllocation(size, 16); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return CountedAllocation(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }

namespace skein::kernels {
namespace {

// All memory of one small layer; Run calls every operator once on T tokens of `rows` rows.
class Layer {
 public:
  static constexpr int kH = 4, kN = 64, C = kH * kN, V = 5000, kMaxT = 64;

  Layer(const OpTable& ops, Stream& stream) : ops_(ops), stream_(stream) {
    std::mt19937 rng(1);
    for (Floats* f : {&x, &w, &k, &v, &a_raw, &y, &out}) *f = RandomFloats(kMaxT * 6 * C, rng);
    a = b = v_first = normed = x;
    vectors = RandomFloats(6 * C, rng);
    table = RandomFloats(V * C, rng, 0.1f);
    state = RandomFloats(kMaxT * kStride, rng);
    logits = Floats(kMaxT * V);
    scratch = Floats(stream.executor().num_threads() * 2 * V);
    for (int i = 0; i < kMaxT; ++i) tokens.push_back(i);
    rows.resize(kMaxT);
    for (SampleRow& row : rows) row.top_p = 0.9f;
    results.resize(kMaxT);
    greedy.resize(kMaxT);
    for (DType dtype : {DType::kF32, DType::kBF16, DType::kI8, DType::kI8A8})
      heads.emplace_back(ops, table, V, C, dtype, stream);
  }

  void Run(const Ragged& batch) {
    const int T = batch.num_tokens;
    ops_.embed({tokens.data(), T, table.get(), DType::kF32, vectors.get(), vectors.get(), 1e-5f, C,
                x.get()},
               stream_);
    ops_.add_norm_mix({batch,
                       C,
                       6,
                       x.get(),
                       y.get(),
                       vectors.get(),
                       vectors.get(),
                       1e-5f,
                       vectors.get(),
                       {state.get(), kStride},
                       normed.get(),
                       out.get()},
                      stream_);
    ops_.prepare({T, kH, kN, w.get(), k.get(), v.get(), a_raw.get(), nullptr, v_first.get(),
                  vectors.get(), vectors.get(), a.get(), b.get()},
                 stream_);
    ops_.wkv7({batch,
               kH,
               kN,
               x.get(),
               w.get(),
               k.get(),
               v.get(),
               a.get(),
               b.get(),
               {state.get() + C, kStride},
               y.get()},
              stream_);
    ops_.norm_bonus_gate({T, kH, kN, y.get(), x.get(), k.get(), v.get(), w.get(), vectors.get(),
                          vectors.get(), vectors.get(), 64e-5f, out.get()},
                         stream_);
    ops_.final_norm(
        {tokens.data(), T, C, x.get(), y.get(), vectors.get(), vectors.get(), 1e-5f, out.get()},
        stream_);
    for (const Packed& head : heads) {
      const MatmulParams m = {out.get(),    C, T, head.view(), nullptr, Activation::kNone,
                              logits.get(), V};
      ops_.matmul(&m, 1, stream_);
    }
    for (int i = 0; i < T * V; ++i) logits[i] = std::isfinite(logits[i]) ? logits[i] : 0;
    ops_.sample({logits.get(), T, V, V, rows.data(), results.data(), scratch.get()}, stream_);
    ops_.score({logits.get(), T, V, tokens.data(), normed.get(), greedy.data()}, stream_);
  }

 private:
  static constexpr int64_t kStride = C + C * kN;
  const OpTable& ops_;
  Stream& stream_;
  Floats x, w, k, v, a_raw, y, out, a, b, v_first, normed, vectors, table, state, logits, scratch;
  std::vector<int32_t> tokens;
  std::vector<SampleRow> rows;
  std::vector<SampleResult> results;
  std::vector<uint8_t> greedy;
  std::vector<Packed> heads;
};

class AllocationTest : public ::testing::TestWithParam<const Tier*> {};

TEST_P(AllocationTest, OperatorsAllocateNothingAfterTheFirstStep) {
  std::string error;
  const auto device = NewCpuDevice({3, GetParam()->name}, &error);
  ASSERT_NE(device, nullptr) << error;
  const auto stream = device->NewStream();
  const int64_t at_first = allocations.load();
  Layer layer(device->ops(), *stream);
  EXPECT_GT(allocations.load(), at_first) << "nothing is counted";
  const RaggedCase prefill({60, 1, 3}, {0, 1, 2}),
      decode(std::vector<int>(9, 1), {8, 1, 2, 3, 4, 5, 6, 7, 0}), one({1}, {5});
  layer.Run(prefill.view());
  const int64_t before = allocations.load();
  for (int i = 0; i < 5; ++i) {
    layer.Run(prefill.view());
    layer.Run(decode.view());
    layer.Run(one.view());
  }
  EXPECT_EQ(allocations.load() - before, 0);
}

std::string TierName(const ::testing::TestParamInfo<const Tier*>& info) { return info.param->name; }
INSTANTIATE_TEST_SUITE_P(Tiers, AllocationTest, ::testing::ValuesIn(MachineTiers()), TierName);

}  // namespace
}  // namespace skein::kernels
