// Forward and backward of the training operators on one thread, in milliseconds of that thread's
// own time (other programs may run), beside the floor: each array once from memory at the speed
// measured in this run, or the operations at the measured peak, whichever takes longer; and beside
// the plain loops. Operations are those of the formulae: of WKV-7 those of the recurrence.
//
//   train_ops_bench [--json FILE]

#include <CLI/CLI.hpp>
#include <cstdio>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/ceilings.h"
#include "bench/write_json.h"
#include "engine/base/file.h"
#include "kernels/train/train_ops.h"

namespace skein::bench {
namespace {

using namespace skein::kernels::train;  // NOLINT

class SerialStream final : public kernels::Stream {
 public:
  void Synchronize() override {}
  kernels::Executor& executor() override { return executor_; }

 private:
  kernels::SerialExecutor executor_;
};

struct Shape {
  int64_t B, T, C, N;
  int64_t R() const { return B * T; }
  int64_t H() const { return C / N; }
};

struct Case {
  std::string name;
  std::function<void(const TrainOps<float>&)> run;  // forward and backward
  double floats = 0;                                // read and written
  double flops = 0;
};

// Arrays of [R, C] and parameters, shared by the cases of one shape.
class Bench {
 public:
  explicit Bench(const Shape& s) : s_(s), partial_(kRowsPerBlock * 16 * s.C) {
    std::mt19937 engine(1);
    std::normal_distribution<float> normal;
    arrays_.resize(24);
    for (auto& array : arrays_) {
      array.resize(s.R() * s.C);
      for (float& x : array) x = 0.2f * normal(engine);
    }
    mixed_.assign(6 * s.R() * s.C, 0.1f);
    states_.resize(s.B * s.H() * s.N * s.N * ((s.T + kChunk - 1) / kChunk + 3));
    rows_.assign(2 * s.R(), 0.5f);
  }

  std::vector<Case> Cases() {
    const double n = static_cast<double>(s_.R()) * s_.C;
    return {{"add_norm_mix (6)", [this](const auto& ops) { NormMix(ops); }, 17 * n, 60 * n},
            {"prepare", [this](const auto& ops) { Prepare(ops); }, 23 * n, 60 * n},
            {"wkv7", [this](const auto& ops) { Wkv7(ops, false); }, 23 * n, (9 + 25) * s_.N * n},
            {"wkv7 for bf16", [this](const auto& ops) { Wkv7(ops, true); }, 23 * n,
             (9 + 25) * s_.N * n},
            {"norm_bonus_gate", [this](const auto& ops) { Gate(ops); }, 17 * n, 50 * n},
            {"relu_squared", [this](const auto& ops) { Relu(ops); }, 5 * n, 4 * n}};
  }

  // Of all that a case may have written.
  uint64_t Hash() const {
    uint64_t hash = 0;
    const auto add = [&hash](const std::vector<float>& values) {
      hash = base::Hash64(values.data(), values.size() * sizeof(float), hash);
    };
    for (const auto& array : arrays_) add(array);
    for (const auto* values : {&mixed_, &states_, &rows_}) add(*values);
    return hash;
  }

 private:
  float* A(int i) { return arrays_[i].data(); }

  // Blocks of rows as the operators on tensors cut them.
  template <class Body>
  void Blocks(const Body& body) {
    for (int64_t row = 0; row < s_.R(); row += kRowsPerBlock) {
      body(row, std::min(s_.R(), row + kRowsPerBlock));
    }
  }

  void NormMix(const TrainOps<float>& ops) {
    const AddNormMixForward<float> p{s_.B,
                                     s_.T,
                                     s_.C,
                                     6,
                                     A(0),
                                     A(1),
                                     A(2),
                                     A(3),
                                     A(4),
                                     nullptr,
                                     1e-5f,
                                     A(5),
                                     mixed_.data(),
                                     rows_.data(),
                                     rows_.data() + s_.R()};
    const float* d_mixed[6];
    for (int64_t m = 0; m < 6; ++m) d_mixed[m] = mixed_.data() + m * s_.R() * s_.C;
    const AddNormMixBackward<float> q{s_.B, s_.T, s_.C, 6,       p.sum, p.mean,  p.rstd,
                                      A(2), A(3), A(4), nullptr, A(6),  d_mixed, A(7)};
    Blocks([&](int64_t begin, int64_t end) { ops.add_norm_mix(p, begin, end); });
    Blocks(
        [&](int64_t begin, int64_t end) { ops.add_norm_mix_grad(q, begin, end, partial_.data()); });
  }

  void Prepare(const TrainOps<float>& ops) {
    const PrepareForward<float> p{s_.R(), s_.H(), s_.N, A(0), A(1), A(2), A(3),
                                  A(4),   A(5),   A(6), A(7), A(8), A(9), A(10)};
    const PrepareBackward<float> q{s_.R(), s_.H(), s_.N,  A(0),  A(1),  A(2),  A(3),
                                   A(4),   A(5),   A(6),  A(11), A(12), A(13), A(14),
                                   A(15),  A(16),  A(17), A(18), A(19)};
    Blocks([&](int64_t begin, int64_t end) { ops.prepare(p, begin, end); });
    Blocks([&](int64_t begin, int64_t end) { ops.prepare_grad(q, begin, end, partial_.data()); });
  }

  void Wkv7(const TrainOps<float>& ops, bool bf16) {
    const int64_t states = s_.B * s_.H() * s_.N * s_.N;
    float *final_state = states_.data(), *d_state = final_state + states, *saved = d_state + states;
    const Wkv7Forward<float> p{s_.B, s_.T, s_.H(),  s_.N,    A(0), A(1),        A(2),  A(3),
                               A(4), A(5), nullptr, nullptr, A(6), final_state, saved, A(7)};
    const Wkv7Backward<float> q{p, A(8), nullptr, A(9), A(10), A(11), A(12), A(13), A(14), d_state};
    bf16 = bf16 && ops.wkv7_bf16 != nullptr;
    (bf16 ? ops.wkv7_bf16 : ops.wkv7)(p, 0, s_.B * s_.H());
    (bf16 ? ops.wkv7_bf16_grad : ops.wkv7_grad)(q, 0, s_.B * s_.H());
  }

  void Gate(const TrainOps<float>& ops) {
    const NormBonusGateForward<float> p{s_.R(), s_.H(), s_.N, A(0), A(1),   A(2), A(3),
                                        A(4),   A(5),   A(6), A(7), 64e-5f, A(8)};
    const NormBonusGateBackward<float> q{p, A(9), A(10), A(11), A(12), A(13), A(14)};
    Blocks([&](int64_t begin, int64_t end) { ops.norm_bonus_gate(p, begin, end); });
    Blocks([&](int64_t begin, int64_t end) {
      ops.norm_bonus_gate_grad(q, begin, end, partial_.data());
    });
  }

  void Relu(const TrainOps<float>& ops) {
    ops.relu_squared(A(0), A(1), 0, s_.R() * s_.C);
    ops.relu_squared_grad(A(0), A(2), A(3), 0, s_.R() * s_.C);
  }

  const Shape s_;
  std::vector<std::vector<float>> arrays_;
  std::vector<float> mixed_, states_, rows_, partial_;
};

nlohmann::json Run() {
  use_thread_time = true;
  SerialStream stream;
  std::vector<char> memory(256 << 20);
  const double bandwidth = ReadBandwidth(stream, memory.data(), memory.size()),
               peak = PeakFlops(stream);
  const TrainOps<float>& ops = ActiveTrainOps<float>();
  std::printf("one thread, tier %s, %.1f GB/s, %.1f GFLOP/s\n", ops.tier, bandwidth * 1e-9,
              peak * 1e-9);
  nlohmann::json results = nlohmann::json::array();
  for (const Shape& s : {Shape{6, 64, 128, 64}, Shape{32, 96, 128, 32}, Shape{8, 512, 768, 64}}) {
    std::printf("B%ld T%ld C%ld N%ld\n%-18s %10s %10s %8s %10s  %s\n", s.B, s.T, s.C, s.N,
                "forward+backward", "ms", "floor ms", "ratio", "plain ms", "hash");
    Bench bench(s);
    for (const Case& c : bench.Cases()) {
      c.run(ops);
      const uint64_t hash = bench.Hash();
      const double seconds = Measure(0.3, [&] { c.run(ops); }).best;
      const double plain = Measure(0, [&] { c.run(PlainTrainOps<float>()); }).best;
      const double floor = std::max(4 * c.floats / bandwidth, peak > 0 ? c.flops / peak : 0);
      std::printf("%-18s %10.3f %10.3f %8.2f %10.3f  %016llx\n", c.name.c_str(), seconds * 1e3,
                  floor * 1e3, seconds / floor, plain * 1e3, static_cast<unsigned long long>(hash));
      results.push_back({{"name", c.name},
                         {"shape", {{"B", s.B}, {"T", s.T}, {"C", s.C}, {"N", s.N}}},
                         {"seconds", seconds},
                         {"floor_seconds", floor},
                         {"ratio", seconds / floor},
                         {"plain_seconds", plain},
                         {"hash", absl::StrCat(absl::Hex(hash))}});
    }
  }
  return {{"tier", ops.tier},
          {"read_bytes_per_second", bandwidth},
          {"peak_flops", peak},
          {"results", results}};
}

}  // namespace
}  // namespace skein::bench

int main(int argc, char** argv) {
  std::string json;
  CLI::App app("training operators beside their floor", "train_ops_bench");
  app.add_option("--json", json, "also write the figures there");
  CLI11_PARSE(app, argc, argv);
  return skein::bench::WriteJson(json, skein::bench::Run());
}
