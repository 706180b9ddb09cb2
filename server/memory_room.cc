#include "server/memory_room.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "kernels/device.h"

namespace skein::server {
namespace {

// A line "Name:   123 kB" of a file in /proc; 0 when it is not there.
int64_t ReadBytes(const char* path, const char* name) {
  std::FILE* file = std::fopen(path, "re");
  if (file == nullptr) return 0;
  char line[256];
  long long kilobytes = 0;
  const size_t length = std::strlen(name);
  while (std::fgets(line, sizeof(line), file) != nullptr) {
    if (std::strncmp(line, name, length) == 0 &&
        std::sscanf(line + length, ": %lld", &kilobytes) == 1) {
      break;
    }
  }
  std::fclose(file);
  return kilobytes * 1024;
}

// Without mapped files: the kernel takes those pages back when it needs them.
int64_t Used() {
  return ReadBytes("/proc/self/status", "RssAnon") + ReadBytes("/proc/self/status", "RssShmem");
}

}  // namespace

int64_t MemoryRoom(int64_t budget) {
  if (budget > 0) return budget - Used();
  const int64_t room = kernels::UsableMemoryBytes() - Used();
  const int64_t available = ReadBytes("/proc/meminfo", "MemAvailable");
  return available > 0 ? std::min(room, available) : room;
}

}  // namespace skein::server
