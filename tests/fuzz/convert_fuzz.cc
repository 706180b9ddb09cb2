// Any bytes as the request of any RPC, see requests.h.

#include <cstddef>
#include <cstdint>

#include "server/quiet_protobuf.h"
#include "tests/fuzz/requests.h"

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  skein::server::QuietProtobuf();  // as skeind does
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  skein::server::fuzz::TryInput({reinterpret_cast<const char*>(data), size});
  return 0;
}
