// The rows of tests/fuzz/requests.h: one for each RPC, and the inputs that the fuzzer has kept.

#include "tests/fuzz/requests.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>

#include "absl/strings/str_cat.h"
#include "server/access.h"
#include "server/quiet_protobuf.h"

namespace skein::server {
namespace {

// A new RPC needs a row: with the access table, which another test holds against the services.
TEST(Requests, EveryRpcIsFuzzed) {
  std::set<std::string> rpcs, fuzzed;
  for (const Access& access : AccessTable()) {
    rpcs.insert(absl::StrCat(access.service, ".", access.method));
  }
  for (const fuzz::Row& row : fuzz::Rows()) {
    const std::string name = absl::StrCat(row.service, ".", row.method);
    EXPECT_TRUE(fuzzed.insert(name).second) << name;
    const auto* method = google::protobuf::DescriptorPool::generated_pool()->FindMethodByName(name);
    ASSERT_NE(method, nullptr) << name;
    EXPECT_EQ(row.request, method->input_type()) << name;
  }
  EXPECT_EQ(fuzzed, rpcs);
}

TEST(Requests, TheFuzzersInputsAreTaken) {
  QuietProtobuf();
  std::set<size_t> met;
  for (const auto& entry : std::filesystem::directory_iterator("tests/fuzz/corpus/convert")) {
    std::ifstream file(entry.path(), std::ios::binary);
    const std::string input{std::istreambuf_iterator<char>(file), {}};
    ASSERT_FALSE(input.empty()) << entry.path();
    fuzz::TryInput(input);
    met.insert(static_cast<uint8_t>(input[0]) % fuzz::Rows().size());
  }
  EXPECT_EQ(met.size(), fuzz::Rows().size()) << "there is an input for each row";
}

}  // namespace
}  // namespace skein::server
