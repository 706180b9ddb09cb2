// The checkpoint reader and writers from the command line, for the interop tests:
//   checkpoint_tool list FILE                          a line per tensor: name dtype shape crc32
//   checkpoint_tool convert IN OUT [fp32|bf16]
//   checkpoint_tool config FILE                        the model, in words
// The crc32 is that of the row-major bytes of the stored type.

#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/checkpoint/convert.h"
#include "engine/checkpoint/crc32.h"

namespace skein::engine {
namespace {

int Fail(const std::string& message) {
  std::fprintf(stderr, "checkpoint_tool: %s\n", message.c_str());
  return 1;
}

int List(const std::string& path) {
  const auto checkpoint = Checkpoint::Open(path);
  if (!checkpoint.ok()) return Fail(checkpoint.status().ToString());
  for (const TensorView& tensor : (*checkpoint)->tensors()) {
    std::vector<uint8_t> raw(tensor.elements() * SizeOf(tensor.dtype));
    tensor.CopyRaw(raw.data());
    const char* type = tensor.dtype == DType::kF32    ? "fp32"
                       : tensor.dtype == DType::kBF16 ? "bf16"
                                                      : "fp16";
    absl::PrintF("%s %s [%s] %08x\n", tensor.name, type, absl::StrJoin(tensor.shape, ","),
                 Crc32(raw.data(), raw.size()));
  }
  return 0;
}

int Convert(const std::string& in, const std::string& out, const std::string& type) {
  std::optional<DType> dtype;
  if (type == "fp32") dtype = DType::kF32;
  if (type == "bf16") dtype = DType::kBF16;
  if (!type.empty() && !dtype) return Fail("the type is fp32 or bf16");
  const absl::Status status = ConvertCheckpoint(in, out, dtype);
  return status.ok() ? 0 : Fail(status.ToString());
}

int Config(const std::string& path) {
  const auto checkpoint = Checkpoint::Open(path);
  if (!checkpoint.ok()) return Fail(checkpoint.status().ToString());
  const auto config = (*checkpoint)->Config();
  if (!config.ok()) return Fail(config.status().ToString());
  absl::PrintF("%s\n", config->ToString());
  return 0;
}

int Main(const std::vector<std::string>& arguments) {
  const std::string command = arguments.empty() ? "" : arguments[0];
  const size_t n = arguments.size();
  if (command == "list" && n == 2) return List(arguments[1]);
  if (command == "config" && n == 2) return Config(arguments[1]);
  if (command == "convert" && (n == 3 || n == 4)) {
    return Convert(arguments[1], arguments[2], n == 4 ? arguments[3] : "");
  }
  return Fail("usage: list FILE | convert IN OUT [fp32|bf16] | config FILE");
}

}  // namespace
}  // namespace skein::engine

int main(int argc, char** argv) { return skein::engine::Main({argv + 1, argv + argc}); }
