#pragma once
// Small checkpoint files made by hand, so that a test can break any byte of them.

// GCC 12 warns about "literal" + std::string inside its own <string> (bug 105651).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wrestrict"
#endif

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/file.h"
#include "engine/checkpoint.h"
#include "engine/checkpoint/bytes.h"
#include "engine/checkpoint/crc32.h"

namespace skein::engine {

// Contents of a file of tests/engine/checkpoint/data; tests run in the root of the repository.
inline std::string Golden(const std::string& name) {
  auto contents = base::ReadFile("tests/engine/checkpoint/data/" + name);
  EXPECT_TRUE(contents.ok()) << contents.status();
  return contents.ok() ? *contents : std::string();
}

// A folder of the test's own, removed at its end.
class TestFolder {
 public:
  TestFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "skein-test-XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~TestFolder() { std::filesystem::remove_all(path_); }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

inline std::string SafetensorsFile(const std::string& header, const std::string& body) {
  std::string file;
  AppendLittleEndian<uint64_t>(header.size(), &file);
  return file + header + body;
}

// One entry of a zip, field by field, so that they can be made to disagree.
struct TestEntry {
  std::string name, contents;
  uint16_t flags = 0, method = 0;
  std::string local_name = {};  // empty: `name`
  int64_t central_size = -1;    // -1: that of the contents
  int64_t local_offset = -1;    // -1: where it is
  bool descriptor = false, wrong_descriptor = false, wrong_local_size = false, wrong_crc = false;
};

inline std::string ZipFile(const std::vector<TestEntry>& entries) {
  std::string file, directory;
  const auto u16 = [](uint64_t v, std::string* out) { AppendLittleEndian<uint16_t>(v, out); };
  const auto u32 = [](uint64_t v, std::string* out) { AppendLittleEndian<uint32_t>(v, out); };
  for (const TestEntry& entry : entries) {
    const uint32_t crc = Crc32(entry.contents.data(), entry.contents.size()) ^ entry.wrong_crc;
    const uint16_t flags = entry.flags | (entry.descriptor ? 8 : 0);
    const uint64_t offset = file.size(), size = entry.contents.size();
    const uint64_t central = entry.central_size < 0 ? size : entry.central_size;
    const std::string& local_name = entry.local_name.empty() ? entry.name : entry.local_name;
    const auto common = [&](uint64_t shown, std::string* out) {
      u16(20, out), u16(flags, out), u16(entry.method, out), u32(0, out);
      u32(entry.descriptor && out == &file ? 0 : crc, out);
      u32(shown, out), u32(shown, out);
    };
    u32(0x04034b50, &file);
    common(entry.descriptor ? 0 : size + entry.wrong_local_size, &file);
    u16(local_name.size(), &file), u16(0, &file);
    file += local_name + entry.contents;
    if (entry.descriptor) {
      u32(0x08074b50, &file), u32(crc + entry.wrong_descriptor, &file);
      u32(size, &file), u32(size, &file);
    }
    u32(0x02014b50, &directory), u16(20, &directory);
    common(central, &directory);
    u16(entry.name.size(), &directory);
    for (int field = 0; field < 4; ++field) u16(0, &directory);
    u32(0, &directory);
    u32(entry.local_offset < 0 ? offset : entry.local_offset, &directory);
    directory += entry.name;
  }
  const uint64_t offset = file.size();
  file += directory;
  u32(0x06054b50, &file), u32(0, &file);
  u16(entries.size(), &file), u16(entries.size(), &file);
  u32(directory.size(), &file), u32(offset, &file), u16(0, &file);
  return file;
}

// Pieces of a pickle of protocol 2.
namespace pickle {
inline std::string Int(int64_t value) {
  std::string out = "\x8a\x08";
  AppendLittleEndian<int64_t>(value, &out);
  return out;
}
inline std::string Str(const std::string& text) {
  std::string out = "X";
  AppendLittleEndian<uint32_t>(text.size(), &out);
  return out + text;
}
inline std::string Ints(const std::vector<int64_t>& values) {
  std::string out = "(";
  for (int64_t value : values) out += Int(value);
  return out + "t";
}
inline std::string Global(const std::string& module, const std::string& name) {
  return "c" + module + "\n" + name + "\n";
}
inline std::string Storage(const std::string& key, int64_t elements,
                           const std::string& type = "FloatStorage") {
  return "(" + Str("storage") + Global("torch", type) + Str(key) + Str("cpu") + Int(elements) +
         "tQ";
}
inline std::string Tensor(const std::string& storage, int64_t offset,
                          const std::vector<int64_t>& shape, const std::vector<int64_t>& strides) {
  return Global("torch._utils", "_rebuild_tensor_v2") + "(" + storage + Int(offset) + Ints(shape) +
         Ints(strides) + "\x89" + Global("collections", "OrderedDict") + ")RtR";
}
inline std::string Dict(const std::vector<std::pair<std::string, std::string>>& items) {
  std::string out = "\x80\x02}(";
  for (const auto& [name, value] : items) out += Str(name) + value;
  return out + "u.";
}
}  // namespace pickle

// A .pth with this data.pkl and one storage "0" of 12 floats, 0 to 11.
inline std::string PthFile(const std::string& data_pkl) {
  std::string storage;
  for (int i = 0; i < 12; ++i) AppendLittleEndian<float>(i, &storage);
  return ZipFile({{"m/data.pkl", data_pkl}, {"m/data/0", storage}, {"m/version", "3\n"}});
}

inline std::vector<float> Values(const TensorView& tensor) {
  std::vector<float> out(tensor.elements());
  tensor.CopyToF32(out.data());
  return out;
}

// The message of a refusal; fails the test when the file was accepted.
template <typename Result>
std::string Refusal(const Result& result,
                    absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
  EXPECT_EQ(result.status().code(), code) << result.status();
  return std::string(result.status().message());
}

}  // namespace skein::engine
