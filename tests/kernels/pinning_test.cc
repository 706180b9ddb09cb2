#include "kernels/cpu/pinning.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "kernels/device.h"

namespace skein::kernels {
namespace {

// The CPUs that each thread of this process may use, as the kernel tells, sorted.
std::vector<std::string> MasksOfThreads() {
  std::vector<std::string> masks;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream in(task.path() / "status");
    const std::string key = "Cpus_allowed_list:\t";
    for (std::string line; std::getline(in, line);) {
      if (line.rfind(key, 0) == 0) masks.push_back(line.substr(key.size()));
    }
  }
  std::sort(masks.begin(), masks.end());
  return masks;
}

std::string ErrorOf(const CpuOptions& options) {
  std::string error;
  EXPECT_EQ(NewCpuDevice(options, &error), nullptr);
  return error;
}

TEST(Pinning, ReadsLists) {
  std::vector<int> cpus;
  std::string error;
  EXPECT_TRUE(ChooseCpus("5,0-2", {0, 1, 2, 3, 5}, &cpus, &error));
  EXPECT_EQ(cpus, (std::vector<int>{5, 0, 1, 2}));
  EXPECT_FALSE(ChooseCpus("0-4", {0, 1, 2, 3, 5}, &cpus, &error));
  EXPECT_EQ(error, "CPU 4 is not among those that this process may use (0-3,5)");
  EXPECT_FALSE(ChooseCpus("1,0-2", {0, 1, 2}, &cpus, &error));
  EXPECT_EQ(error, "'1,0-2' names CPU 1 twice");
  for (const char* bad : {"all", "1-", "-1", "2-1", "1,,2", ",", "1 ", "0x1", "1-99999999999",
                          "99999999999", "0-70000"}) {
    EXPECT_FALSE(ChooseCpus(bad, {0, 1, 2}, &cpus, &error)) << bad;
  }
}

TEST(Pinning, AutoTakesAllThatThereAre) {
  std::vector<int> cpus;
  std::string error;
  ASSERT_TRUE(ChooseCpus("auto", AllowedCpus(), &cpus, &error));
  std::sort(cpus.begin(), cpus.end());
  EXPECT_EQ(cpus, AllowedCpus());
}

TEST(Pinning, BindsEachThreadToItsCpu) {
  const std::vector<int> allowed = AllowedCpus();
  const std::string all = CpuListText(allowed);
  if (allowed.size() < 2) GTEST_SKIP() << "one CPU: every thread is bound to it";
  std::thread([] {}).join();  // with the first one a sanitizer begins a thread of its own
  const std::vector<std::string> before = MasksOfThreads();
  const std::string first = std::to_string(allowed[1]), second = std::to_string(allowed[0]);
  std::string error;
  const auto device = NewCpuDevice({0, "", first + "," + second}, &error);
  ASSERT_NE(device, nullptr) << error;
  EXPECT_EQ(device->info().threads, 2);
  std::thread([&] {
    device->EnterThread();
    std::vector<std::string> expected = before;
    expected.push_back(first);
    expected.push_back(second);
    std::sort(expected.begin(), expected.end());
    EXPECT_EQ(MasksOfThreads(), expected);
  }).join();
  // Who only made the device, or loads a model, stays where it was.
  EXPECT_EQ(AllowedCpus(), allowed);
}

TEST(Pinning, WithoutItNobodyIsBound) {
  const std::string all = CpuListText(AllowedCpus());
  std::string error;
  const auto device = NewCpuDevice({3, ""}, &error);
  device->EnterThread();
  for (const std::string& mask : MasksOfThreads()) EXPECT_EQ(mask, all);
}

TEST(Pinning, RefusesWhatCannotBe) {
  const std::vector<int> allowed = AllowedCpus();
  EXPECT_EQ(ErrorOf({0, "", "60000"}), "CPU 60000 is not among those that this process may use (" +
                                           CpuListText(allowed) + ")");
  EXPECT_EQ(ErrorOf({2, "", std::to_string(allowed[0])}),
            "2 threads cannot be bound to 1 CPUs, one each");
  const int more = static_cast<int>(allowed.size()) + 1;
  EXPECT_NE(ErrorOf({more, "", "auto"}).find("cannot be bound"), std::string::npos);
}

// A process that was started with taskset, or in a cpuset, may name only what it was given.
TEST(Pinning, KeepsToTheMaskOfTheProcess) {
  const std::vector<int> allowed = AllowedCpus();
  if (allowed.size() < 2) GTEST_SKIP() << "one CPU";
  std::thread([&] {
    ASSERT_TRUE(PinThread(pthread_self(), allowed[0]));
    EXPECT_EQ(ErrorOf({0, "", std::to_string(allowed[1])}),
              "CPU " + std::to_string(allowed[1]) +
                  " is not among those that this process may use (" + std::to_string(allowed[0]) +
                  ")");
  }).join();
}

}  // namespace
}  // namespace skein::kernels
