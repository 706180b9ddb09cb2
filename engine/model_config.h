#pragma once
// What a checkpoint's tensor names and shapes say about the model in it.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace skein::engine {

enum class RwkvVersion { kV7 };  // later versions join here

struct ModelConfig {
  RwkvVersion version = RwkvVersion::kV7;
  int32_t L = 0;  // layers
  int32_t C = 0;  // width
  int32_t H = 0;  // heads
  int32_t N = 0;  // head size, C = H * N
  int32_t V = 0;  // rows of embedding and head
  int32_t F = 0;  // width of the channel mix
  int32_t rank_w = 0, rank_a = 0, rank_v = 0,
          rank_g = 0;  // low-rank branches; rank_v 0 when L == 1 without v
  int64_t parameters = 0;

  // Floats of one slot: L * (C + H*N*N + C): per layer time-mix shift, WKV state, channel-mix
  // shift.
  int64_t state_floats() const { return int64_t{L} * layer_state_floats(); }
  int64_t layer_state_floats() const { return 2 * int64_t{C} + int64_t{H} * N * N; }
  // "RWKV-7, 12 layers, width 768, 12 heads of 64, vocabulary 65536, 191.0 M parameters"
  std::string ToString() const;
};

struct TensorShape {
  std::string name;
  std::vector<int64_t> shape;
};

// INVALID_ARGUMENT names what was found (another RWKV version, an experimental variant, a converted
// file, a missing or wrongly shaped tensor) and what is supported. Never looks at the file's name.
absl::StatusOr<ModelConfig> RecognizeModel(const std::vector<TensorShape>& tensors);

}  // namespace skein::engine
