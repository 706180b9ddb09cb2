#pragma once
// Which CPUs this process may run on, and threads bound to one of them.

#include <pthread.h>

#include <string>
#include <vector>

namespace skein::kernels {

// The affinity mask (which a control group's cpuset narrows), ascending.
std::vector<int> AllowedCpus();

// The CPUs of CpuOptions::pin, in its order. False with *error set when the text means none, names
// one twice, or one that is not among `allowed`.
bool ChooseCpus(const std::string& pin, const std::vector<int>& allowed, std::vector<int>* cpus,
                std::string* error);

// "0-3,8", of ascending CPUs.
std::string CpuListText(const std::vector<int>& cpus);

// False when the system refuses.
bool PinThread(pthread_t thread, int cpu);

}  // namespace skein::kernels
