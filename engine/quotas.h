#pragma once
// What one tenant may use at once. 0: only the limits of the whole server hold.

#include <cstdint>

namespace skein::engine {

struct Quotas {
  int64_t requests = 0;       // running and waiting together
  int64_t queued_tokens = 0;  // prompt tokens of the requests that wait
  int64_t conversations = 0;  // kept
  int64_t bytes = 0;          // of host memory, for the states and tokens of the kept ones

  bool operator==(const Quotas&) const = default;
};

}  // namespace skein::engine
