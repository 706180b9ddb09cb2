#pragma once
// What a benchmark has measured, as a file beside what it prints: the machine, the command, the
// figures and the hashes of what was computed.

#include <sys/utsname.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kernels/device.h"

namespace skein::bench {

inline std::string ProcessorName() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

inline nlohmann::json Machine() {
  utsname system{};
  uname(&system);
  double load = 0;  // of the last minute, this benchmark's own too: what else ran beside it
  getloadavg(&load, 1);
  return {{"processor", ProcessorName()},
          {"processors", sysconf(_SC_NPROCESSORS_ONLN)},
          {"usable_memory_bytes", kernels::UsableMemoryBytes()},
          {"kernel", system.release},
          {"load_average", load}};
}

// The command line of this process, arguments separated by blanks.
inline std::string CommandLine() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::string words{std::istreambuf_iterator<char>(file), {}};
  if (!words.empty() && words.back() == '\0') words.pop_back();
  for (char& c : words) c = c == '\0' ? ' ' : c;
  return words;
}

// The exit code of the program. An empty path: nothing is asked for.
inline int WriteJson(const std::string& path, const nlohmann::json& figures) {
  if (path.empty()) return 0;
  std::ofstream file(path);
  file << nlohmann::json{{"machine", Machine()},
                         {"command", CommandLine()},
                         {"date",
                          absl::FormatTime(absl::RFC3339_sec, absl::Now(), absl::UTCTimeZone())},
                         {"figures", figures}}
              .dump(2)
       << std::endl;
  if (file.good()) return 0;
  std::fprintf(stderr, "%s: cannot be written\n", path.c_str());
  return 1;
}

}  // namespace skein::bench
