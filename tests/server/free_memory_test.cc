// Memory that is free between what is used goes back to the system.

#include "server/free_memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <memory>
#include <thread>
#include <vector>

namespace skein::server {
namespace {

int64_t Resident() {
  std::ifstream statm("/proc/self/statm");
  int64_t size = 0, resident = 0;
  statm >> size >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

TEST(FreeMemory, GoesBackFromBetweenWhatIsUsed) {
  constexpr int kPieces = 4096, kBytes = 16 << 10;
  std::vector<std::unique_ptr<char[]>> pieces;
  // In another thread's arena, as those of requests are.
  std::thread([&] {
    for (int i = 0; i < kPieces; ++i) {
      pieces.push_back(std::make_unique<char[]>(kBytes));
      std::memset(pieces.back().get(), 1, kBytes);
    }
  }).join();
  const int64_t all = int64_t{kPieces} * kBytes;
  for (int i = 0; i < kPieces; ++i) {
    if (i % 16 != 0) pieces[i].reset();
  }
  const int64_t before = Resident();
  GiveBackFreeMemory();
  EXPECT_LT(Resident(), before - all / 2);
  for (int i = 0; i < kPieces; i += 16) EXPECT_EQ(pieces[i][kBytes - 1], 1);
}

}  // namespace
}  // namespace skein::server
