#include "trainer/export.h"

#include <deque>

#include "engine/checkpoint.h"

namespace skein::trainer {
namespace {

struct Tensors {
  std::vector<engine::TensorToWrite> list;
  std::deque<std::vector<uint16_t>> rounded;  // owns the bf16 bytes
};

Tensors Collect(const Parameters& parameters, const std::string& dtype) {
  Tensors tensors;
  const float* flat = parameters.master().const_data_ptr<float>();
  for (const Parameter& p : parameters.list()) {
    const int64_t each = p.elements() / static_cast<int64_t>(p.names.size());
    for (size_t i = 0; i < p.names.size(); ++i) {
      const float* data = flat + p.offset + static_cast<int64_t>(i) * each;
      engine::TensorToWrite out{p.names[i], engine::DType::kF32, p.file_shape, data};
      if (dtype == "bf16") {
        std::vector<uint16_t>& bits = tensors.rounded.emplace_back(static_cast<size_t>(each));
        for (int64_t j = 0; j < each; ++j)
          bits[static_cast<size_t>(j)] = engine::F32ToBF16(data[j]);
        out.dtype = engine::DType::kBF16;
        out.data = bits.data();
      }
      tensors.list.push_back(std::move(out));
    }
  }
  return tensors;
}

}  // namespace

absl::Status ExportCheckpoint(const std::string& path, const Parameters& parameters,
                              const std::string& dtype,
                              const std::map<std::string, std::string>& metadata) {
  const Tensors tensors = Collect(parameters, dtype);
  return engine::WriteSafetensors(path, tensors.list, metadata);
}

absl::Status ExportPth(const std::string& path, const Parameters& parameters,
                       const std::string& dtype) {
  const Tensors tensors = Collect(parameters, dtype);
  return engine::WritePth(path, tensors.list);
}

}  // namespace skein::trainer
