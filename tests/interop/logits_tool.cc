// The engine's model from the command line, for the interop tests:
//   logits_tool MODEL fp32|bf16|int8|int8a8 OUT.f32 GREEDY TOKEN...
// writes the logits of every prompt token, [T, V] fp32, to OUT.f32 and prints GREEDY tokens sampled
// greedily after it.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "bench/weights.h"
#include "engine/base/file.h"
#include "engine/models/model.h"

namespace skein::engine {
namespace {

constexpr int32_t kMaxTokens = 1024;

int Fail(const std::string& message) {
  std::fprintf(stderr, "logits_tool: %s\n", message.c_str());
  return 1;
}

int Main(int argc, char** argv) {
  if (argc < 6)
    return Fail("usage: logits_tool MODEL fp32|bf16|int8|int8a8 OUT.f32 GREEDY TOKEN...");
  std::vector<int32_t> prompt;
  for (int i = 5; i < argc; ++i) prompt.push_back(std::atoi(argv[i]));
  auto checkpoint = Checkpoint::Open(argv[1]);
  if (!checkpoint.ok()) return Fail(checkpoint.status().ToString());
  std::string error;
  const auto device = kernels::NewCpuDevice({}, &error);
  if (device == nullptr) return Fail(error);
  ModelOptions options;
  const auto weights = bench::WeightsOf(argv[2]);
  if (!weights.has_value()) return Fail(std::string("unknown weights ") + argv[2]);
  options.weights = *weights;
  options.max_tokens = options.max_logits = kMaxTokens;
  auto model = Model::Load(**checkpoint, *device, options);
  if (!model.ok()) return Fail(model.status().ToString());
  const int32_t V = (*model)->config().V;
  const auto T = static_cast<int32_t>(prompt.size());
  if (T > kMaxTokens) return Fail("at most 1024 tokens");

  const auto stream = device->NewStream();
  const kernels::Buffer state(*device, (*model)->config().state_floats() * sizeof(float));
  std::memset(state.data(), 0, state.bytes());
  std::vector<int32_t> wanted(T), offsets = {0, T};
  for (int32_t t = 0; t < T; ++t) wanted[t] = t;
  const std::vector<int32_t> slots = {0};
  const float* logits =
      (*model)->Step({prompt, offsets, slots, wanted}, state.as<float>(), *stream);
  const absl::Status written = base::WriteFileAtomically(
      argv[3], absl::string_view(reinterpret_cast<const char*>(logits), sizeof(float) * T * V));
  if (!written.ok()) return Fail(written.ToString());

  std::vector<int32_t> next = {static_cast<int32_t>(
      std::max_element(logits + (T - 1) * V, logits + T * V) - (logits + (T - 1) * V))};
  offsets = {0, 1};
  wanted = {0};
  for (int i = std::atoi(argv[4]); i > 0; --i) {
    std::printf("%d\n", next[0]);
    logits = (*model)->Step({next, offsets, slots, wanted}, state.as<float>(), *stream);
    next[0] = static_cast<int32_t>(std::max_element(logits, logits + V) - logits);
  }
  return 0;
}

}  // namespace
}  // namespace skein::engine

int main(int argc, char** argv) { return skein::engine::Main(argc, argv); }
