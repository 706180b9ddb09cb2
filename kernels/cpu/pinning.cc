#include "kernels/cpu/pinning.h"

#include <sched.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <memory>
#include <sstream>

namespace skein::kernels {
namespace {

constexpr int kMostCpus = 1 << 16;  // more than Linux can be built for

// A CPU set of any size.
class CpuSet {
 public:
  explicit CpuSet(int cpus) : cpus_(cpus), set_(CPU_ALLOC(cpus)) { CPU_ZERO_S(bytes(), set_); }
  ~CpuSet() { CPU_FREE(set_); }
  CpuSet(const CpuSet&) = delete;
  CpuSet& operator=(const CpuSet&) = delete;
  size_t bytes() const { return CPU_ALLOC_SIZE(cpus_); }
  cpu_set_t* get() { return set_; }

 private:
  const int cpus_;
  cpu_set_t* const set_;
};

// "3" or "0-3"; false when it is neither.
bool ParseRange(const std::string& text, int* first, int* last) {
  const char* const end = text.data() + text.size();
  auto [next, error] = std::from_chars(text.data(), end, *first);
  if (error != std::errc() || *first < 0) return false;
  *last = *first;
  if (next == end) return true;
  if (*next != '-') return false;
  const auto rest = std::from_chars(next + 1, end, *last);
  return rest.ec == std::errc() && rest.ptr == end && *last >= *first && *last < kMostCpus;
}

// The first CPU of the core that this one belongs to; itself where the system does not say.
int FirstOfCore(int cpu) {
  std::ifstream in("/sys/devices/system/cpu/cpu" + std::to_string(cpu) +
                   "/topology/thread_siblings_list");
  int first = cpu;
  in >> first;
  return first;
}

// One CPU of each core, then the others: threads that share a core's units come last.
std::vector<int> ByCores(const std::vector<int>& allowed) {
  std::vector<int> cpus, cores, seconds;
  for (const int cpu : allowed) {
    const int core = FirstOfCore(cpu);
    const bool taken = std::find(cores.begin(), cores.end(), core) != cores.end();
    (taken ? seconds : cpus).push_back(cpu);
    cores.push_back(core);
  }
  cpus.insert(cpus.end(), seconds.begin(), seconds.end());
  return cpus;
}

}  // namespace

std::vector<int> AllowedCpus() {
  std::vector<int> cpus;
  for (int size = CPU_SETSIZE; size <= kMostCpus; size *= 4) {
    CpuSet set(size);
    if (sched_getaffinity(0, set.bytes(), set.get()) != 0) continue;  // more CPUs than it holds
    for (int cpu = 0; cpu < size; ++cpu) {
      if (CPU_ISSET_S(cpu, set.bytes(), set.get())) cpus.push_back(cpu);
    }
    break;
  }
  return cpus;
}

bool ChooseCpus(const std::string& pin, const std::vector<int>& allowed, std::vector<int>* cpus,
                std::string* error) {
  cpus->clear();
  if (pin == "auto") {
    *cpus = ByCores(allowed);
    return true;
  }
  std::istringstream list(pin);
  for (std::string item; std::getline(list, item, ',');) {
    int first = 0, last = 0;
    if (!ParseRange(item, &first, &last)) {
      *error = "'" + pin + "' is neither auto nor a list of CPUs like 0-3,8";
      return false;
    }
    for (int cpu = first; cpu <= last; ++cpu) {
      if (std::find(allowed.begin(), allowed.end(), cpu) == allowed.end()) {
        *error = "CPU " + std::to_string(cpu) + " is not among those that this process may use (" +
                 CpuListText(allowed) + ")";
        return false;
      }
      if (std::find(cpus->begin(), cpus->end(), cpu) != cpus->end()) {
        *error = "'" + pin + "' names CPU " + std::to_string(cpu) + " twice";
        return false;
      }
      cpus->push_back(cpu);
    }
  }
  return true;
}

std::string CpuListText(const std::vector<int>& cpus) {
  std::ostringstream text;
  for (size_t i = 0; i < cpus.size();) {
    size_t last = i;
    while (last + 1 < cpus.size() && cpus[last + 1] == cpus[last] + 1) ++last;
    text << (i > 0 ? "," : "") << cpus[i];
    if (last > i) text << '-' << cpus[last];
    i = last + 1;
  }
  return text.str();
}

bool PinThread(pthread_t thread, int cpu) {
  CpuSet set(std::max(cpu + 1, CPU_SETSIZE));
  CPU_SET_S(cpu, set.bytes(), set.get());
  return pthread_setaffinity_np(thread, set.bytes(), set.get()) == 0;
}

}  // namespace skein::kernels
