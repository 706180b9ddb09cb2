// The order in which gradients are sent, with a pretended second process; test_data_parallel.py has
// real ones.
#include "trainer/gradient_buckets.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/equal.h>
#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "tests/trainer/small_model.h"
#include "trainer/models/rwkv7_step.h"

namespace skein::trainer {
namespace {

// The other process's gradient is as ours: the sum is twice ours. It arrives at the end.
class Twins final : public DataParallel {
 public:
  explicit Twins(Parameters* parameters) : DataParallel(0, 2, 1), parameters_(parameters) {}
  void StartSum(const float* part, float* total, int64_t n) override {
    sent.emplace_back(total - parameters_->gradient().const_data_ptr<float>(), n);
    parts_.push_back({part, total, n});
  }
  void FinishSums() override {
    for (const Part& p : parts_) {
      for (int64_t i = 0; i < p.n; ++i) p.total[i] = 2 * p.part[i];
    }
    parts_.clear();
  }

  std::vector<std::pair<int64_t, int64_t>> sent;  // offset in the gradient, floats

 private:
  struct Part {
    const float* part;
    float* total;
    int64_t n;
  };
  Parameters* const parameters_;
  std::vector<Part> parts_;
};

struct Fixture {
  void Backward(GradientBuckets* buckets) {
    step.Run(batch, {}, 1e-4, {32, 32}, [buckets](int i) {
      if (buckets != nullptr) buckets->OnGradient(i);
    });
  }

  std::unique_ptr<Rwkv7> owned = SmallModel(3);
  Rwkv7& model = *owned;
  Twins twins{&model.parameters()};
  Rwkv7Step step{&model};
  Batch batch = SmallSource(16).Get(0, 2);
};

TEST(GradientBuckets, EachFloatIsSummedOnceAndInOneOrder) {
  Fixture f;
  f.Backward(nullptr);
  const at::Tensor own = f.model.parameters().gradient().clone();
  GradientBuckets buckets(&f.model.parameters(), &f.twins, 1024);
  std::vector<std::pair<int64_t, int64_t>> first;
  for (int pass = 0; pass < 2; ++pass) {
    f.model.parameters().gradient().zero_();
    f.twins.sent.clear();
    buckets.Begin();
    f.Backward(&buckets);
    buckets.Finish();
    EXPECT_TRUE(at::equal(f.model.parameters().gradient(), own * 2));
    std::vector<int> times(static_cast<size_t>(own.numel()), 0);
    for (const auto& [offset, n] : f.twins.sent) {
      for (int64_t i = 0; i < n; ++i) ++times[static_cast<size_t>(offset + i)];
    }
    EXPECT_EQ(times, std::vector<int>(times.size(), 1));
    if (pass == 0) first = f.twins.sent;
    EXPECT_EQ(f.twins.sent, first);
  }
}

TEST(GradientBuckets, TheHeadIsSentFirstAndMostBeforeThePassEnds) {
  Fixture f;
  GradientBuckets buckets(&f.model.parameters(), &f.twins, 1024);
  buckets.Begin();
  f.Backward(&buckets);
  const Parameter& head = f.model.parameters().list().back();
  ASSERT_EQ(head.names.front(), "head.weight");
  ASSERT_FALSE(f.twins.sent.empty());
  EXPECT_GE(f.twins.sent.front().first, head.offset);
  EXPECT_LT(f.twins.sent.front().first, head.offset + head.elements());
  const size_t meanwhile = f.twins.sent.size();
  buckets.Finish();
  EXPECT_GT(meanwhile, f.twins.sent.size() * 2 / 3);
}

TEST(GradientBuckets, MicroBatchesAreSummedBeforeTheyAreSent) {
  Fixture f;
  GradientBuckets buckets(&f.model.parameters(), &f.twins, 1024);
  f.Backward(&buckets);
  EXPECT_TRUE(f.twins.sent.empty());
  const at::Tensor once = f.model.parameters().gradient().clone();
  buckets.Begin();
  f.Backward(&buckets);
  buckets.Finish();
  EXPECT_LT((f.model.parameters().gradient() - once * 4).norm().item<double>(),
            1e-6 * once.norm().item<double>());
}

TEST(GradientBuckets, APassThatIsGivenUpSendsAllTheSame) {
  Fixture f;
  GradientBuckets buckets(&f.model.parameters(), &f.twins, 1024);
  buckets.Begin();
  f.Backward(&buckets);
  buckets.Finish();
  const auto whole = std::exchange(f.twins.sent, {});
  buckets.Finish();  // the other process has done its pass
  EXPECT_EQ(f.twins.sent, whole);
}

TEST(GradientBuckets, OneProcessSendsNothing) {
  Fixture f;
  class One final : public DataParallel {
   public:
    One() : DataParallel(0, 1, 1) {}
    void StartSum(const float*, float*, int64_t) override { FAIL(); }
  } one;
  GradientBuckets buckets(&f.model.parameters(), &one, 1024);
  buckets.Begin();
  f.Backward(&buckets);
  buckets.Finish();
}

}  // namespace
}  // namespace skein::trainer
