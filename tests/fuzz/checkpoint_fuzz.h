#pragma once
// Uses a parsed checkpoint as a model loader would: reads every weight.

#include <cstdint>
#include <vector>

#include "engine/checkpoint.h"

namespace skein::engine {

inline void UseCheckpoint(const Checkpoint& checkpoint) {
  std::vector<float> wide;
  std::vector<uint8_t> raw;
  for (const TensorView& tensor : checkpoint.tensors()) {
    wide.resize(tensor.elements());
    tensor.CopyToF32(wide.data());
    raw.resize(tensor.elements() * SizeOf(tensor.dtype));
    tensor.CopyRaw(raw.data());
  }
  if (auto config = checkpoint.Config(); config.ok()) config->ToString();
  checkpoint.Fingerprint();
}

}  // namespace skein::engine
