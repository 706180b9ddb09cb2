// Instances that are resolved, replaced and removed while many threads use them.

#include "server/instance_registry.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

namespace skein::server {
namespace {

std::atomic<int> alive{0};
std::atomic<int> freed_while_used{0};

// Has a thread of its own, as an engine has, and joins it when it dies.
struct Instance {
  explicit Instance(int number)
      : number(number), thread([this] {
          while (!stop.load()) std::this_thread::sleep_for(std::chrono::microseconds(50));
        }) {
    ++alive;
  }
  ~Instance() {
    if (users.load() != 0) ++freed_while_used;
    stop.store(true);
    thread.join();
    --alive;
  }
  const int number;
  std::atomic<int> users{0};
  std::atomic<bool> stop{false};
  std::thread thread;
};

using Registry = InstanceRegistry<Instance>;

bool Add(Registry* registry, const std::string& name, int number, bool replace) {
  auto instance = std::make_unique<Instance>(number);
  return registry->Add(name, &instance, replace);
}

TEST(InstanceRegistryTest, NamesAndDefault) {
  Registry registry;
  EXPECT_EQ(registry.Find(""), nullptr);
  EXPECT_EQ(registry.default_name(), "");
  EXPECT_TRUE(Add(&registry, "b", 1, false));
  EXPECT_TRUE(Add(&registry, "a", 2, false));
  EXPECT_EQ(registry.default_name(), "b");  // the first one, not the first by name
  EXPECT_EQ(registry.Find("")->number, 1);
  EXPECT_EQ(registry.Find("a")->number, 2);
  EXPECT_EQ(registry.Find("c"), nullptr);
  EXPECT_EQ(registry.Named().size(), 2u);
  EXPECT_TRUE(registry.Remove("b"));
  EXPECT_FALSE(registry.Remove("b"));
  EXPECT_EQ(registry.Find("")->number, 2);
  EXPECT_TRUE(registry.Remove("a"));
  EXPECT_EQ(registry.Find(""), nullptr);
}

TEST(InstanceRegistryTest, ATakenNameIsKeptUnlessReplaced) {
  Registry registry;
  Add(&registry, "a", 1, false);
  auto second = std::make_unique<Instance>(2);
  EXPECT_FALSE(registry.Add("a", &second, /*replace=*/false));
  ASSERT_NE(second, nullptr);
  EXPECT_EQ(registry.Find("a")->number, 1);
  EXPECT_TRUE(registry.Add("a", &second, /*replace=*/true));
  EXPECT_EQ(second, nullptr);
  EXPECT_EQ(registry.Find("")->number, 2);
}

TEST(InstanceRegistryTest, WhatIsUsedLivesOnAndIsToldAsRetired) {
  Registry registry;
  Add(&registry, "a", 1, false);
  Registry::Ref used = registry.Find("a");
  Add(&registry, "a", 2, true);
  EXPECT_EQ(used->number, 1);
  ASSERT_EQ(registry.Retired().size(), 1u);
  EXPECT_EQ(registry.Retired()[0], used);
  used.reset();
  EXPECT_TRUE(registry.Retired().empty());
  while (alive.load() != 1) std::this_thread::yield();  // freed by the registry's thread
}

TEST(InstanceRegistryTest, AnInstancesOwnThreadMayDropTheLastReference) {
  {
    Registry registry;
    Add(&registry, "a", 1, false);
    Registry::Ref ref = registry.Find("a");
    registry.Remove("a");
    std::thread other([moved = std::move(ref)]() mutable { moved.reset(); });
    other.join();
  }
  EXPECT_EQ(alive.load(), 0);
}

TEST(InstanceRegistryTest, ResolvedWhileReplacedAndRemoved) {
  constexpr int kUsers = 4, kReplacements = 200;
  std::atomic<bool> stop{false};
  std::atomic<int64_t> uses{0}, backwards{0};
  {
    Registry registry;
    Add(&registry, "a", 0, false);
    std::vector<std::thread> users;
    for (int u = 0; u < kUsers; ++u) {
      users.emplace_back([&, u] {
        int newest = 0;
        while (!stop.load()) {
          const Registry::Ref ref = registry.Find(u % 2 == 0 ? "a" : "");
          if (ref == nullptr) continue;
          ++ref->users;
          if (u % 2 == 0 && ref->number < newest) ++backwards;  // a replaced one came back
          if (u % 2 == 0) newest = ref->number;
          registry.Retired();
          ++uses;
          --ref->users;
        }
      });
    }
    for (int i = 1; i <= kReplacements; ++i) {
      Add(&registry, "a", i, true);
      if (i % 8 == 0) Add(&registry, "b", -i, true);
      if (i % 16 == 0) registry.Remove("b");
    }
    stop.store(true);
    for (std::thread& user : users) user.join();
    EXPECT_EQ(registry.Find("a")->number, kReplacements);
  }
  EXPECT_GT(uses.load(), 0);
  EXPECT_EQ(backwards.load(), 0);
  EXPECT_EQ(freed_while_used.load(), 0);
  EXPECT_EQ(alive.load(), 0);  // the registry waits for its own thread
}

}  // namespace
}  // namespace skein::server
