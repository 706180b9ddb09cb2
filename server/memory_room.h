#pragma once
// How much memory this process may still take.

#include <cstdint>

namespace skein::server {

// `budget`: what the process may use; 0: the limit of its control group or the machine's memory,
// and then no more than what the machine has available.
int64_t MemoryRoom(int64_t budget);

}  // namespace skein::server
