#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "kernels/cpu/host_limits.h"
#include "kernels/cpu/region.h"
#include "kernels/cpu/tiers.h"
#include "kernels/device.h"
#include "kernels/ops.h"

namespace skein::kernels {
namespace {

using ::testing::HasSubstr;

class CpuDeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* set = getenv("SKEIN_CPU");
    saved_ = set == nullptr ? "" : set;
    unsetenv("SKEIN_CPU");
  }
  void TearDown() override {
    if (!saved_.empty()) setenv("SKEIN_CPU", saved_.c_str(), 1);
  }
  std::string saved_;
};

TEST_F(CpuDeviceTest, EveryTierOfTheMachineOpensByName) {
  for (const Tier& tier : AllTiers()) {
    std::string error;
    const auto device = NewCpuDevice({2, tier.name}, &error);
    if (tier.available()) {
      ASSERT_NE(device, nullptr) << error;
      EXPECT_EQ(device->info().tier, tier.name);
      EXPECT_STREQ(device->ops().tier, tier.name);
      EXPECT_EQ(device->info().threads, 2);
    } else {
      EXPECT_EQ(device, nullptr);
      EXPECT_THAT(error, HasSubstr(tier.needs));
    }
  }
}

TEST_F(CpuDeviceTest, TheEnvironmentForcesATierAndOptionsWin) {
  std::string error;
  setenv("SKEIN_CPU", "plain", 1);
  EXPECT_EQ(NewCpuDevice({}, &error)->info().tier, "plain");
  setenv("SKEIN_CPU", "avx3", 1);
  EXPECT_EQ(NewCpuDevice({}, &error), nullptr);
  EXPECT_THAT(error, HasSubstr("SKEIN_CPU"));
  EXPECT_THAT(error, HasSubstr("'avx3'"));
  EXPECT_THAT(error, HasSubstr("plain"));
  EXPECT_EQ(NewCpuDevice({0, "plain"}, &error)->info().tier, "plain");
  unsetenv("SKEIN_CPU");
}

TEST_F(CpuDeviceTest, RefusesAnImpossibleNumberOfThreads) {
  std::string error;
  EXPECT_EQ(NewCpuDevice({-1, ""}, &error), nullptr);
  EXPECT_THAT(error, HasSubstr("-1"));
  EXPECT_EQ(NewCpuDevice({1 << 20, ""}, &error), nullptr);
  EXPECT_THAT(error, HasSubstr("1048576"));
}

TEST_F(CpuDeviceTest, MemoryIsAlignedAndCopies) {
  std::string error;
  const auto device = NewCpuDevice({}, &error);
  ASSERT_NE(device, nullptr) << error;
  EXPECT_GT(device->info().memory_bytes, 0);
  EXPECT_GE(device->info().threads, 1);
  const auto stream = device->NewStream();
  Buffer a(*device, 100), b(*device, 100);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a.data()) % 64, 0u);
  char host[100];
  std::memset(host, 7, sizeof host);
  device->CopyToDevice(a.data(), host, 100, *stream);
  device->CopyOnDevice(b.data(), a.data(), 100, *stream);
  device->Zero(b.data(), 50, *stream);
  device->CopyToHost(host, b.data(), 100, *stream);
  stream->Synchronize();
  EXPECT_EQ(host[49], 0);
  EXPECT_EQ(host[50], 7);
  device->Free(nullptr);
  EXPECT_EQ(device->Allocate(SIZE_MAX - 3), nullptr);
}

TEST_F(CpuDeviceTest, DenormalsAreFlushedOnEveryThreadAndTheCallersSettingComesBack) {
  std::string error;
  const auto device = NewCpuDevice({4, ""}, &error);
  const auto stream = device->NewStream();
  const unsigned before = _mm_getcsr();
  std::atomic<int> kept{0};
  for (int i = 0; i < 100; ++i) {
    ForRange(*stream, 4, 1, [&](int64_t, int64_t) {
      volatile float tiny = 1e-38f;
      volatile float product = tiny * 0.1f;
      if (product != 0.0f) kept.fetch_add(1);
    });
  }
  EXPECT_EQ(kept.load(), 0);
  EXPECT_EQ(_mm_getcsr() & 0x8040u, before & 0x8040u);
}

// A made-up /proc/self/cgroup and /sys/fs/cgroup.
class CgroupTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = std::filesystem::temp_directory_path() / ("skein_cgroup_" + std::to_string(getpid()));
    std::filesystem::create_directories(root_);
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  void Write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  CgroupLimits Read() { return ReadCgroupLimits(root_ / "cgroup", root_ / "sys"); }
  std::filesystem::path root_;
};

TEST_F(CgroupTest, VersionTwoTakesTheSmallestLimitOfAllLevels) {
  Write("cgroup", "0::/a/b\n");
  Write("sys/a/b/cpu.max", "max 100000\n");
  Write("sys/a/cpu.max", "250000 100000\n");
  Write("sys/a/b/memory.max", "2000000\n");
  Write("sys/a/memory.max", "1000000\n");
  EXPECT_DOUBLE_EQ(Read().cpus, 2.5);
  EXPECT_EQ(Read().memory_bytes, 1000000);
}

TEST_F(CgroupTest, VersionOneAndNoLimit) {
  Write("cgroup", "4:memory:/x\n3:cpu,cpuacct:/x\n2:cpuset:/x\n");
  Write("sys/cpu,cpuacct/x/cpu.cfs_quota_us", "150000\n");
  Write("sys/cpu,cpuacct/x/cpu.cfs_period_us", "100000\n");
  Write("sys/memory/x/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_DOUBLE_EQ(Read().cpus, 1.5);
  EXPECT_EQ(Read().memory_bytes, 0);
  Write("sys/cpu,cpuacct/x/cpu.cfs_quota_us", "-1\n");
  EXPECT_EQ(Read().cpus, 0);
}

TEST_F(CgroupTest, AMachineWithoutControlGroups) {
  EXPECT_EQ(Read().cpus, 0);
  EXPECT_EQ(Read().memory_bytes, 0);
  EXPECT_GE(UsableThreads(), 1);
  EXPECT_GT(UsableMemoryBytes(), 0);
}

}  // namespace
}  // namespace skein::kernels
