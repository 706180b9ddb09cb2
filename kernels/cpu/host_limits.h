#pragma once
// What this process may use of its machine: CPU affinity, and the CPU quota and memory limit of its
// control group (versions 1 and 2, every level up to the root).

#include <sched.h>

#include <cstdint>
#include <string>

namespace skein::kernels {

struct CgroupLimits {
  double cpus = 0;           // quota / period; 0: no limit
  int64_t memory_bytes = 0;  // 0: no limit
};

// `membership` is the file /proc/self/cgroup, `mounts` the folder /sys/fs/cgroup.
CgroupLimits ReadCgroupLimits(const std::string& membership, const std::string& mounts);

// At least 1: the affinity mask, cut to the whole CPUs of the quota.
int UsableThreads();
// The same for another affinity mask.
int UsableThreads(const cpu_set_t& affinity);

// UsableMemoryBytes() is declared in kernels/device.h, for those above.

}  // namespace skein::kernels
