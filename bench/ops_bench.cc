// Microseconds of every operator at the shape of the 0.1B model (L12 C768 V65536 F3072, ranks 64 64
// 32 128), beside the floor: what must come from memory and from the cache at the speeds measured
// in this run, or the operations at the measured peak, whichever takes longer. Weights and states
// rotate over the 12 layers, so they are not in a cache when a layer comes round. The hash of the
// outputs shows when a change of speed changed the numbers. Where the tier has WKV by chunks
// (cpu.chunked_wkv), prompts show its gain and by how much its outputs differ.
//
//   ops_bench [--threads N] [--tier NAME] [--tokens 1,4,16,256]
//             [--types bf16,int8,int8a8,fp32] [--json FILE] [--clock thread]   (with --threads 1:
//             time that the thread ran; for a machine that others use too)

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "bench/ceilings.h"
#include "bench/weights.h"
#include "bench/write_json.h"
#include "kernels/device.h"
#include "kernels/ops.h"

namespace skein::bench {
namespace {

using namespace skein::kernels;  // NOLINT

constexpr int kL = 12, kC = 768, kV = 65536, kF = 3072, kH = 12, kN = 64, kMaxT = 256;
constexpr int kRankW = 64, kRankA = 64, kRankV = 32, kRankG = 128;
constexpr int64_t kStateFloats = int64_t{kH} * kN * kN + 2 * kC;

struct Options {
  int threads = 0;
  std::string tier, json;
  std::vector<int> tokens = {1, 4, 16, 256};
  std::vector<DType> types = {DType::kBF16, DType::kI8, DType::kF32};
};

// A line of the table.
struct Case {
  std::string name;
  std::function<void(int layer)> run;
  double memory_bytes = 0;  // weights and states: from memory
  double cache_bytes = 0;   // activations
  double flops = 0;
  const float* output = nullptr;  // hashed
  int64_t output_floats = 0;
  int per_step = kL;                            // how often a step of the model runs it
  std::optional<DType> weights = std::nullopt;  // of a product
};

// Weights of one layer and the memory that all cases share.
class Bench {
 public:
  Bench(Device& device, Stream& stream) : device_(device), stream_(stream), ops_(device.ops()) {
    for (float** p :
         {&x_, &delta_, &normed_, &r_, &w_, &k_, &v_, &a_, &b_, &a_raw_, &v_raw_, &v_first_, &y_}) {
      *p = Random(kMaxT * kC, 1.0f);
    }
    mixed_ = Random(6 * kMaxT * kC, 1.0f);
    hidden_ = Random(kMaxT * kF, 1.0f);
    low_ = Random(kMaxT * 512, 1.0f);
    // As prepare makes them: decays in [0.545, 1], a and b with a norm below one in each head.
    decays_ = Random(kMaxT * kC, 0.2274f);
    for (int i = 0; i < kMaxT * kC; ++i) decays_[i] += 0.7726f;
    wkv_a_ = Random(kMaxT * kC, 0.2f);
    wkv_b_ = Random(kMaxT * kC, 0.2f);
    vectors_ = Random(6 * kC, 0.5f);
    states_ = Random(kL * kMaxStates * kStateFloats, 0.1f);
    logits_ = Random(int64_t{kMaxLogits} * kV, 3.0f);
    scratch_ = Random(int64_t{device.info().threads} * 2 * kV, 1.0f);
    embedding_ = Random(int64_t{kV} * kC, 0.3f);
    for (int i = 0; i < kMaxT; ++i) ids_.push_back(i);
    rows_.resize(kMaxLogits);
    results_.resize(kMaxLogits);
    greedy_.resize(kMaxLogits);
  }

  // Every case at T tokens: one row of T when `prefill`, else T rows of one.
  std::vector<Case> Cases(int T, bool prefill, DType dtype) {
    SetBatch(T, prefill);
    chunked_ = prefill && ops_.wkv7_chunked != nullptr;
    std::vector<Case> cases;
    AddNorms(T, dtype, &cases);
    AddMatmuls(T, dtype, &cases);
    AddTimeMix(T, &cases);
    AddSampling(std::min(T, kMaxLogits), &cases);
    return cases;
  }

  // Of the outputs of WKV by chunks to those of the loop over tokens, from the same state; as a
  // share of the largest. Nothing where there are no chunks.
  std::optional<double> ChunkedDifference() {
    if (!chunked_) return std::nullopt;
    const std::vector<float> state(states_, states_ + kStateFloats);
    ops_.wkv7(Wkv(0), stream_);
    const std::vector<float> want(y_, y_ + int64_t{batch_.num_tokens} * kC);
    std::copy(state.begin(), state.end(), states_);
    ops_.wkv7_chunked(Wkv(0), stream_);
    double difference = 0, largest = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      difference = std::max<double>(difference, std::abs(want[i] - y_[i]));
      largest = std::max<double>(largest, std::abs(want[i]));
    }
    return difference / largest;
  }

 private:
  static constexpr int kMaxStates = 16;  // of each layer; more rows come round to them again
  static constexpr int kMaxLogits = 16;

  float* Random(int64_t n, float scale) {
    buffers_.emplace_back(device_, 4 * n);
    float* p = buffers_.back().as<float>();
    uint32_t bits = 12345;
    for (int64_t i = 0; i < n; ++i) {
      bits = bits * 1664525u + 1013904223u;
      p[i] = scale * (static_cast<float>(bits >> 8) / 8388608.0f - 1.0f);
    }
    return p;
  }

  std::vector<PackedMatrix> Weights(int layers, int O, int K, DType dtype) {
    std::vector<PackedMatrix> weights;
    for (int l = 0; l < layers; ++l) {
      buffers_.emplace_back(device_, ops_.packed_bytes(O, K, dtype));
      PackParams p;
      p.source = embedding_ + int64_t{l} * 1000;
      p.O = O;
      p.K = K;
      p.dtype = dtype;
      p.out = buffers_.back().data();
      ops_.pack(p, stream_);
      weights.push_back({O, K, dtype, p.out});
    }
    return weights;
  }

  void SetBatch(int T, bool prefill) {
    offsets_.clear();
    slots_.clear();
    row_of_.clear();
    const int rows = prefill ? 1 : std::min(T, kMaxStates);
    for (int r = 0; r <= rows; ++r) offsets_.push_back(T * r / rows);
    for (int r = 0; r < rows; ++r) {
      slots_.push_back(r);
      for (int t = offsets_[r]; t < offsets_[r + 1]; ++t) row_of_.push_back(r);
    }
    batch_ = {rows, T, offsets_.data(), slots_.data(), row_of_.data()};
  }

  StateView StateOf(int layer) const {
    return {states_ + int64_t{layer} * kMaxStates * kStateFloats, kStateFloats};
  }

  void AddNorms(int T, DType dtype, std::vector<Case>* cases) {
    const double row = 4.0 * T * kC;
    cases->push_back(
        {"embed",
         [=, this](int) {
           ops_.embed({ids_.data(), T, embedding_, dtype, vectors_, vectors_, 1e-5f, kC, normed_},
                      stream_);
         },
         0, 2 * row, 0, normed_, int64_t{T} * kC, 1});
    for (int M : {6, 1}) {
      cases->push_back({"add_norm_mix " + std::to_string(M),
                        [=, this](int l) {
                          ops_.add_norm_mix({batch_, kC, M, x_, delta_, vectors_, vectors_, 1e-5f,
                                             vectors_, StateOf(l), normed_, mixed_},
                                            stream_);
                        },
                        8.0 * batch_.num_rows * kC, (4 + 1 + M) * row, 0, mixed_,
                        int64_t{T} * kC * M});
    }
    cases->push_back({"final_norm",
                      [=, this](int) {
                        ops_.final_norm(
                            {ids_.data(), T, kC, x_, delta_, vectors_, vectors_, 1e-5f, normed_},
                            stream_);
                      },
                      0, 3 * row, 0, normed_, int64_t{T} * kC, 1});
  }

  MatmulParams Product(const float* x, int T, const PackedMatrix& w, float* y,
                       Activation activation) const {
    MatmulParams p;
    p.x = x;
    p.x_stride = w.K;
    p.T = T;
    p.w = w;
    p.activation = activation;
    p.y = y;
    p.y_stride = w.O;
    return p;
  }

  // Products that run in one group; member i reads inputs[i] and writes outputs[i].
  void AddGroup(const std::string& name, int T, DType dtype, int layers,
                std::vector<std::pair<int, int>> shapes, std::vector<const float*> inputs,
                std::vector<float*> outputs, Activation activation, std::vector<Case>* cases) {
    std::vector<std::vector<MatmulParams>> groups(layers);
    Case c;
    c.name = name;
    for (size_t i = 0; i < shapes.size(); ++i) {
      const auto [O, K] = shapes[i];
      const std::vector<PackedMatrix> weights = Weights(layers, O, K, dtype);
      for (int l = 0; l < layers; ++l)
        groups[l].push_back(Product(inputs[i], T, weights[l], outputs[i], activation));
      c.memory_bytes += static_cast<double>(ops_.packed_bytes(O, K, dtype));
      c.cache_bytes += 4.0 * T * (O + K);
      c.flops += 2.0 * T * O * K;
    }
    c.run = [groups, layers, this](int l) {
      const auto& group = groups[l % layers];
      ops_.matmul(group.data(), static_cast<int>(group.size()), stream_);
    };
    c.output = outputs[0];
    c.output_floats = int64_t{T} * shapes[0].first;
    c.per_step = layers;
    c.weights = dtype;
    cases->push_back(c);
  }

  void AddMatmuls(int T, DType dtype, std::vector<Case>* cases) {
    const auto mix = [this](int m) { return mixed_ + int64_t{m} * kMaxT * kC; };
    float* low[4] = {low_, low_ + kMaxT * 64, low_ + kMaxT * 128, low_ + kMaxT * 192};
    AddGroup("matmul r k v", T, dtype, kL, {{kC, kC}, {kC, kC}, {kC, kC}}, {mix(0), mix(1), mix(2)},
             {r_, w_, a_}, Activation::kNone, cases);
    AddGroup("matmul low-rank in", T, dtype, kL,
             {{kRankW, kC}, {kRankA, kC}, {kRankV, kC}, {kRankG, kC}},
             {mix(0), mix(1), mix(2), mix(3)}, {low[0], low[1], low[2], low[3]}, Activation::kTanh,
             cases);
    AddGroup("matmul low-rank out", T, dtype, kL,
             {{kC, kRankW}, {kC, kRankA}, {kC, kRankV}, {kC, kRankG}},
             {low[0], low[1], low[2], low[3]}, {r_, w_, a_, b_}, Activation::kNone, cases);
    AddGroup("matmul output", T, dtype, kL, {{kC, kC}}, {y_}, {r_}, Activation::kNone, cases);
    AddGroup("matmul ffn.key", T, dtype, kL, {{kF, kC}}, {y_}, {hidden_}, Activation::kReluSquared,
             cases);
    AddGroup("matmul ffn.value", T, dtype, kL, {{kC, kF}}, {hidden_}, {r_}, Activation::kNone,
             cases);
    AddGroup("matmul head", std::min(T, kMaxLogits), dtype, 1, {{kV, kC}}, {y_}, {logits_},
             Activation::kNone, cases);
  }

  Wkv7Params Wkv(int layer) const {
    return {batch_, kH, kN, r_, decays_, k_, v_, wkv_a_, wkv_b_, StateOf(layer), y_};
  }

  void AddTimeMix(int T, std::vector<Case>* cases) {
    const double row = 4.0 * T * kC;
    cases->push_back({"prepare",
                      [=, this](int) {
                        ops_.prepare({T, kH, kN, w_, k_, v_, a_raw_, v_raw_, v_first_, vectors_,
                                      vectors_, a_, b_},
                                     stream_);
                      },
                      0, 12 * row, 0, a_, int64_t{T} * kC});
    const Case wkv = {"wkv7",
                      [this](int l) { ops_.wkv7(Wkv(l), stream_); },
                      8.0 * batch_.num_rows * kH * kN * kN,
                      7 * row,
                      9.0 * T * kH * kN * kN,
                      y_,
                      int64_t{T} * kC};
    cases->push_back(wkv);
    if (chunked_) {
      cases->push_back(wkv);
      cases->back().name = "wkv7 chunked";
      cases->back().run = [this](int l) { ops_.wkv7_chunked(Wkv(l), stream_); };
      cases->back().per_step = 0;
    }
    cases->push_back({"norm_bonus_gate",
                      [=, this](int) {
                        ops_.norm_bonus_gate({T, kH, kN, y_, r_, k_, v_, a_, vectors_, vectors_,
                                              vectors_, 64e-5f, normed_},
                                             stream_);
                      },
                      0, 6 * row, 0, normed_, int64_t{T} * kC});
  }

  void AddSampling(int n, std::vector<Case>* cases) {
    const auto add = [&](const char* name, float temperature, float top_p, int per_step) {
      cases->push_back(
          {name,
           [=, this](int) {
             for (SampleRow& r : rows_) {
               r.temperature = temperature;
               r.top_p = top_p;
             }
             ops_.sample({logits_, n, kV, kV, rows_.data(), results_.data(), scratch_}, stream_);
             for (int i = 0; i < n; ++i) normed_[i] = static_cast<float>(results_[i].token);
           },
           0, 4.0 * n * kV, 0, normed_, n, per_step});
    };
    add("sample greedy", 0, 1, 0);
    add("sample all", 1, 1, 0);
    add("sample top_p 0.5", 1, 0.5f, 1);
    cases->push_back({"score",
                      [=, this](int) {
                        ops_.score({logits_, n, kV, ids_.data(), normed_, greedy_.data()}, stream_);
                      },
                      0, 4.0 * n * kV, 0, normed_, n, 0});
  }

  Device& device_;
  Stream& stream_;
  const OpTable& ops_;
  std::vector<Buffer> buffers_;
  float *x_, *delta_, *normed_, *r_, *w_, *k_, *v_, *a_, *b_, *a_raw_, *v_raw_, *v_first_, *y_;
  float *decays_, *wkv_a_, *wkv_b_;
  float *mixed_, *hidden_, *low_, *vectors_, *states_, *logits_, *scratch_, *embedding_;
  std::vector<int32_t> offsets_, slots_, row_of_, ids_;
  Ragged batch_;
  bool chunked_ = false;
  std::vector<SampleRow> rows_;
  std::vector<SampleResult> results_;
  std::vector<uint8_t> greedy_;
};

uint32_t Hash(const float* data, int64_t n) {
  uint32_t hash = 2166136261u;
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, data + i, 4);
    hash = (hash ^ bits) * 16777619u;
  }
  return hash;
}

struct Ceilings {
  double memory = 0, cache = 0, flops = 0;
  std::map<DType, double> dot_flops;  // of products with such weights
};

// Of what each case computes, one after the other: before any is timed, since some change what
// they read.
std::vector<uint32_t> HashCases(const std::vector<Case>& cases) {
  std::vector<uint32_t> hashes;
  for (const Case& c : cases) {
    c.run(0);
    hashes.push_back(Hash(c.output, c.output_floats));
  }
  return hashes;
}

nlohmann::json MeasureCase(const Case& c, int T, const Ceilings& top, uint32_t hash) {
  int layer = 0;
  const Timing t = Measure(0.05, [&] { c.run(layer++ % kL); });
  const double moved = c.memory_bytes / top.memory + c.cache_bytes / top.cache;
  const double peak =
      c.weights.has_value() && *c.weights != DType::kF32 ? top.dot_flops.at(*c.weights) : top.flops;
  const double floor = std::max(moved, peak > 0 ? c.flops / peak : 0);
  const double gigabytes = (c.memory_bytes + c.cache_bytes) / t.median / 1e9,
               gigaflops = c.flops / t.median / 1e9;
  std::printf("%5d  %-20s %10.1f %10.1f %9.1f %9.1f %10.1f %6.2f %6.2f  %08x\n", T, c.name.c_str(),
              t.median * 1e6, t.best * 1e6, gigabytes, gigaflops, floor * 1e6, floor / t.median,
              floor / t.best, hash);
  return {{"tokens", T},
          {"name", c.name},
          {"us", t.median * 1e6},
          {"best_us", t.best * 1e6},
          {"per_step", c.per_step},
          {"gb_per_s", gigabytes},
          {"gflop_per_s", gigaflops},
          {"floor_us", floor * 1e6},
          {"ratio", floor / t.median},
          {"hash", hash}};
}

// Where the microseconds of one step go: every operator times how often the step runs it.
nlohmann::json PrintStep(const nlohmann::json& cases, int T) {
  double total = 0, floor = 0;
  for (const auto& c : cases) {
    total += c["us"].get<double>() * c["per_step"].get<int>();
    floor += c["floor_us"].get<double>() * c["per_step"].get<int>();
  }
  std::printf("one step of %d tokens: %.0f us, floor %.0f us, ratio %.2f\n", T, total, floor,
              floor / total);
  for (const auto& c : cases) {
    const double us = c["us"].get<double>() * c["per_step"].get<int>();
    if (us == 0) continue;
    std::printf("       %-20s %3d x %10.1f us = %10.1f us  %5.1f %% of the step, ratio %.2f\n",
                c["name"].get<std::string>().c_str(), c["per_step"].get<int>(),
                c["us"].get<double>(), us, 100 * us / total, c["ratio"].get<double>());
  }
  return {{"tokens", T}, {"name", "step"}, {"us", total}, {"floor_us", floor}};
}

nlohmann::json PrintChunked(const nlohmann::json& cases, int T, double difference) {
  double loop = 0, chunked = 0;
  for (const auto& c : cases) {
    if (c["name"] == "wkv7") loop = c["us"];
    if (c["name"] == "wkv7 chunked") chunked = c["us"];
  }
  std::printf("wkv7 of %d tokens: by chunks %.2f times as fast, y differs by %.1e of its largest\n",
              T, loop / chunked, difference);
  return {{"tokens", T},
          {"name", "gain of wkv7 chunked"},
          {"gain", loop / chunked},
          {"difference", difference}};
}

Options ParseOptions(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string key = argv[i], value = argv[i + 1];
    if (key == "--threads") options.threads = std::atoi(value.c_str());
    if (key == "--tier") options.tier = value;
    if (key == "--json") options.json = value;
    if (key == "--types") {
      options.types.clear();
      for (const absl::string_view name : absl::StrSplit(value, ',')) {
        const std::optional<DType> type = WeightsOf(std::string(name));
        if (type.has_value()) options.types.push_back(*type);
      }
    }
    if (key == "--clock") use_thread_time = value == "thread";
    if (key != "--tokens") continue;
    options.tokens.clear();
    for (size_t at = 0; at < value.size(); at = std::min(value.size(), value.find(',', at)) + 1) {
      options.tokens.push_back(std::clamp(std::atoi(value.c_str() + at), 1, kMaxT));
    }
  }
  return options;
}

int Main(int argc, char** argv) {
  const Options options = ParseOptions(argc, argv);
  std::string error;
  const std::unique_ptr<Device> device = NewCpuDevice({options.threads, options.tier}, &error);
  if (device == nullptr) {
    std::fprintf(stderr, "ops_bench: %s\n", error.c_str());
    return 1;
  }
  const std::unique_ptr<Stream> stream = device->NewStream();
  Ceilings top;
  top.memory = ReadBandwidth(*device, *stream, int64_t{256} << 20);
  top.cache = ReadBandwidth(*device, *stream, int64_t{512} << 10);
  top.flops = PeakFlops(*stream, device->info().tier);
  for (const DType dtype : {DType::kBF16, DType::kI8, DType::kI8A8})
    top.dot_flops[dtype] = PeakFlops(*stream, device->info().tier, dtype);
  std::printf(
      "tier %s, %d threads; read %.1f GB/s from memory, %.1f GB/s from cache; fp32 peak %.1f, "
      "for bf16 %.1f, for int8 %.1f, for int8a8 %.1f GFLOP/s\n",
      device->info().tier.c_str(), device->info().threads, top.memory / 1e9, top.cache / 1e9,
      top.flops / 1e9, top.dot_flops[DType::kBF16] / 1e9, top.dot_flops[DType::kI8] / 1e9,
      top.dot_flops[DType::kI8A8] / 1e9);
  nlohmann::json report = {{"tier", device->info().tier},
                           {"threads", device->info().threads},
                           {"memory_gb_per_s", top.memory / 1e9},
                           {"cache_gb_per_s", top.cache / 1e9},
                           {"peak_gflop_per_s", top.flops / 1e9},
                           {"bf16_peak_gflop_per_s", top.dot_flops[DType::kBF16] / 1e9},
                           {"int8_peak_gflop_per_s", top.dot_flops[DType::kI8] / 1e9},
                           {"int8a8_peak_gflop_per_s", top.dot_flops[DType::kI8A8] / 1e9}};
  for (DType dtype : options.types) {
    const char* name = NameOfWeights(dtype);
    std::printf(
        "\nweights %s\ntokens operator %23s us %7s best %6s GB/s GFLOP/s %8s us ratio  best  "
        "hash\n",
        name, "median", "", "", "floor");
    for (int T : options.tokens) {
      Bench bench(*device, *stream);
      nlohmann::json cases = nlohmann::json::array();
      const std::vector<Case> all = bench.Cases(T, T > 64, dtype);
      const std::optional<double> difference = bench.ChunkedDifference();
      const std::vector<uint32_t> hashes = HashCases(all);
      for (size_t i = 0; i < all.size(); ++i)
        cases.push_back(MeasureCase(all[i], T, top, hashes[i]));
      const nlohmann::json step = PrintStep(cases, T);
      if (difference.has_value()) cases.push_back(PrintChunked(cases, T, *difference));
      cases.push_back(step);
      for (auto& c : cases) report[name].push_back(c);
    }
  }
  return WriteJson(options.json, report);
}

}  // namespace
}  // namespace skein::bench

int main(int argc, char** argv) { return skein::bench::Main(argc, argv); }
