// What a drain shows, and in which order. The rest is seen from outside, in
// tests/python/test_control.py and test_operation.py.

#include "server/lifecycle.h"

#include <gtest/gtest.h>

#include <memory>
#include <utility>

#include "tests/engine/engine_harness.h"

namespace skein::server {
namespace {

class LifecycleTest : public testing::Test {
 protected:
  LifecycleTest() : lifecycle_(&models_) {
    parts_.Start();
    auto instance = std::make_unique<ServedInstance>();
    instance->served = {"m", &parts_.tokenizer, nullptr, parts_.tokenizer.vocab_size()};
    instance->engine = std::move(parts_.engine);
    engine_ = instance->engine.get();
    EXPECT_TRUE(lifecycle_.Serve(&instance, /*replace=*/false));
    lifecycle_.Loaded();
  }
  bool accepts() const { return engine_->CheckOpen("", {}).ok(); }

  engine::Harness parts_;  // outlives the engine
  ModelRegistry models_;
  Lifecycle lifecycle_;
  engine::Engine* engine_ = nullptr;  // of models_
};

TEST_F(LifecycleTest, HealthTurnsBeforeAnythingIsRefused) {
  int shown = 0;
  const auto show = [&](Lifecycle::State state) {
    return [&, state] {
      ++shown;
      EXPECT_EQ(lifecycle_.state(), state);
      EXPECT_TRUE(accepts());
    };
  };
  EXPECT_EQ(lifecycle_.state(), Lifecycle::kReady);
  lifecycle_.BeginDrain(absl::InfiniteFuture(), show(Lifecycle::kDraining));
  EXPECT_EQ(shown, 1);
  EXPECT_FALSE(accepts());
  EXPECT_TRUE(lifecycle_.Undrain().ok());
  EXPECT_TRUE(accepts());
  lifecycle_.BeginStop(absl::InfiniteFuture(), show(Lifecycle::kStopping));
  EXPECT_EQ(shown, 2);
  EXPECT_FALSE(accepts());
  EXPECT_FALSE(lifecycle_.Undrain().ok());
  EXPECT_FALSE(accepts());
}

}  // namespace
}  // namespace skein::server
