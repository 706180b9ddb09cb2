// MB/s of encoding and of streaming decode with the World vocabulary, one thread, beside the floor:
// the byte tokenizer and a copy, which read and write the same text and decide nothing. The hash of
// the tokens shows when a change of speed changed them.
//
//   tokenizer_bench [--vocabulary FILE] [--json FILE] [TEXT FILE...]      default text: README.md

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/write_json.h"
#include "engine/base/file.h"
#include "engine/tokenizer.h"

namespace skein::bench {
namespace {

constexpr size_t kTextBytes = size_t{16} << 20;
constexpr int kRuns = 5;

double BestSeconds(const std::function<void()>& run) {
  double best = 1e9;
  for (int i = 0; i < kRuns; ++i) {
    const auto start = std::chrono::steady_clock::now();
    run();
    best = std::min(
        best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

// The file, repeated up to kTextBytes.
std::string Text(const std::string& path) {
  const auto contents = base::ReadFile(path);
  if (!contents.ok() || contents->empty()) {
    std::fprintf(stderr, "tokenizer_bench: %s: %s\n", path.c_str(),
                 std::string(contents.status().message()).c_str());
    std::exit(1);
  }
  std::string text;
  while (text.size() < kTextBytes) text += *contents;
  return text;
}

nlohmann::json Report(const std::string& file, const char* what, size_t bytes, double seconds,
                      double floor) {
  std::printf("%-30s %-8s %8.1f MB/s   floor %8.1f MB/s   ratio %6.2f\n", file.c_str(), what,
              bytes / seconds / 1e6, bytes / floor / 1e6, seconds / floor);
  return {{"file", file},
          {"what", what},
          {"mb_per_s", bytes / seconds / 1e6},
          {"floor_mb_per_s", bytes / floor / 1e6},
          {"ratio", seconds / floor}};
}

void Measure(const engine::Tokenizer& world, const std::string& file, nlohmann::json* results) {
  const std::string text = Text(file);
  const auto bytes = engine::NewByteTokenizer();
  std::vector<int32_t> tokens;
  tokens.reserve(text.size());
  const auto encode = [&](const engine::Tokenizer& tokenizer) {
    return BestSeconds([&] { tokens.clear(), tokenizer.Encode(text, &tokens); });
  };
  const double encode_floor = encode(*bytes);
  const double encode_seconds = encode(world);
  std::string out;
  out.reserve(text.size());
  const double decode_floor = BestSeconds([&] { out.assign(text); });
  const double decode_seconds = BestSeconds([&] {
    engine::Utf8Stream stream;
    out.clear();
    for (const int32_t token : tokens) stream.Push(world.Bytes(token), &out);
    stream.Finish(&out);
  });
  const uint64_t hash = base::Hash64(tokens.data(), tokens.size() * sizeof(int32_t));
  results->push_back(Report(file, "encode", text.size(), encode_seconds, encode_floor));
  results->back()["hash"] = absl::StrCat(absl::Hex(hash));
  results->push_back(Report(file, "decode", text.size(), decode_seconds, decode_floor));
  results->back()["hash"] = absl::StrCat(absl::Hex(base::Hash64(out.data(), out.size())));
  std::printf("%-30s %.2f bytes a token, tokens hash %016llx\n", "",
              double(text.size()) / tokens.size(), static_cast<unsigned long long>(hash));
}

int Main(int argc, char** argv) {
  const char* deps = std::getenv("SKEIN_DEPS");
  const char* home = std::getenv("HOME");
  std::string vocabulary =
      (deps != nullptr ? std::string(deps)
                       : std::string(home != nullptr ? home : "") + "/.cache/skein") +
      "/rwkv_vocab_v20230424.txt";
  std::string json;
  std::vector<std::string> files;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--vocabulary" && i + 1 < argc) {
      vocabulary = argv[++i];
    } else if (argument == "--json" && i + 1 < argc) {
      json = argv[++i];
    } else {
      files.push_back(argument);
    }
  }
  if (files.empty()) files.push_back("README.md");
  const auto world = engine::LoadWorldVocabulary(vocabulary);
  if (!world.ok()) {
    std::fprintf(stderr, "tokenizer_bench: %s\n", std::string(world.status().message()).c_str());
    return 1;
  }
  nlohmann::json results = nlohmann::json::array();
  for (const std::string& file : files) Measure(**world, file, &results);
  return WriteJson(json, results);
}

}  // namespace
}  // namespace skein::bench

int main(int argc, char** argv) { return skein::bench::Main(argc, argv); }
