#include "kernels/cpu/host_limits.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <vector>

#include "kernels/cpu/pinning.h"
#include "kernels/device.h"

namespace skein::kernels {
namespace {

constexpr char kMembership[] = "/proc/self/cgroup";
constexpr char kMounts[] = "/sys/fs/cgroup";

template <typename T>
void TakeSmaller(T value, T* limit) {
  if (value > 0 && (*limit == 0 || value < *limit)) *limit = value;
}

// The first number of a file; 0 when there is none ("max" means no limit).
double ReadNumber(const std::string& file) {
  std::ifstream in(file);
  double value = 0;
  return in >> value ? value : 0;
}

// Version 2's "cpu.max": "<quota|max> <period>".
double ReadCpuMax(const std::string& file) {
  std::ifstream in(file);
  double quota = 0, period = 0;
  return in >> quota >> period && period > 0 ? quota / period : 0;
}

double ReadCpuQuotaV1(const std::string& folder) {
  const double quota = ReadNumber(folder + "/cpu.cfs_quota_us");
  const double period = ReadNumber(folder + "/cpu.cfs_period_us");
  return quota > 0 && period > 0 ? quota / period : 0;
}

// Version 1 says "no limit" with a number near 2^63.
int64_t ReadMemory(const std::string& file) {
  const double bytes = ReadNumber(file);
  return bytes > 0 && bytes < 4e18 ? static_cast<int64_t>(bytes) : 0;
}

// path and all its parents below `root`, and root itself: a limit of any level holds. Inside a
// container the path may name a place outside of what is mounted; then only the levels that exist
// are read.
std::vector<std::string> Levels(const std::string& root, std::string path) {
  std::vector<std::string> levels;
  while (!path.empty() && path != "/") {
    levels.push_back(root + path);
    path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
  }
  levels.push_back(root);
  return levels;
}

bool HasController(const std::string& controllers, const std::string& name) {
  std::istringstream list(controllers);
  for (std::string item; std::getline(list, item, ',');) {
    if (item == name) return true;
  }
  return false;
}

// Rounded down: spinning threads beyond the quota would only be put to sleep.
int CutToQuota(int threads) {
  const double quota = ReadCgroupLimits(kMembership, kMounts).cpus;
  if (quota > 0) threads = std::min(threads, static_cast<int>(quota));
  return std::max(threads, 1);
}

}  // namespace

CgroupLimits ReadCgroupLimits(const std::string& membership, const std::string& mounts) {
  CgroupLimits limits;
  std::ifstream in(membership);
  // Lines are "<id>:<controllers>:<path>"; version 2's has no controllers.
  for (std::string line; std::getline(in, line);) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    if (controllers.empty()) {
      for (const std::string& level : Levels(mounts, path)) {
        TakeSmaller(ReadCpuMax(level + "/cpu.max"), &limits.cpus);
        TakeSmaller(ReadMemory(level + "/memory.max"), &limits.memory_bytes);
      }
    }
    if (HasController(controllers, "cpu")) {
      for (const std::string& root : {mounts + "/" + controllers, mounts + "/cpu"}) {
        for (const std::string& level : Levels(root, path)) {
          TakeSmaller(ReadCpuQuotaV1(level), &limits.cpus);
        }
      }
    }
    if (HasController(controllers, "memory")) {
      for (const std::string& level : Levels(mounts + "/memory", path)) {
        TakeSmaller(ReadMemory(level + "/memory.limit_in_bytes"), &limits.memory_bytes);
      }
    }
  }
  return limits;
}

int UsableThreads() { return CutToQuota(static_cast<int>(AllowedCpus().size())); }

int UsableThreads(const cpu_set_t& affinity) { return CutToQuota(CPU_COUNT(&affinity)); }

int64_t UsableMemoryBytes() {
  int64_t bytes = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGE_SIZE);
  const int64_t limit = ReadCgroupLimits(kMembership, kMounts).memory_bytes;
  return limit > 0 ? std::min(bytes, limit) : bytes;
}

}  // namespace skein::kernels
