#include "engine/tokenizer.h"

#include <array>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/checkpoint.h"

namespace skein::engine {
namespace {

constexpr int32_t kWorldRows = 65536;  // rows of the models trained on the public World vocabulary
constexpr int32_t kByteRows = 257;

class ByteTokenizer : public Tokenizer {
 public:
  ByteTokenizer() {
    for (int i = 0; i < 256; ++i) bytes_[i] = static_cast<char>(i);
  }
  const std::string& kind() const override {
    static const std::string kKind = "bytes";
    return kKind;
  }
  int32_t vocab_size() const override { return kByteRows; }

  using Tokenizer::Encode;
  void Encode(absl::string_view bytes, std::vector<int32_t>* tokens) const override {
    for (const char c : bytes) tokens->push_back(static_cast<uint8_t>(c) + 1);
  }
  absl::string_view Bytes(int32_t token) const override {
    return token > 0 && token < kByteRows ? absl::string_view(&bytes_[token - 1], 1)
                                          : absl::string_view();
  }
  bool IsValid(int32_t token) const override { return token >= 0 && token < kByteRows; }

 private:
  std::array<char, 256> bytes_;
};

// Where the World vocabulary is when a checkpoint does not bring it, and which key says so.
struct WorldFile {
  const std::string& path;
  absl::string_view key;
};

absl::StatusOr<std::unique_ptr<Tokenizer>> WorldFromFile(const WorldFile& world) {
  auto tokenizer = LoadWorldVocabulary(world.path);
  if (!absl::IsNotFound(tokenizer.status()) && !world.path.empty()) return tokenizer;
  return absl::FailedPreconditionError(absl::StrCat(
      "this model needs the World vocabulary, rwkv_vocab_v20230424.txt, and ",
      world.path.empty() ? std::string("no path to it is given")
                         : absl::StrCat("'", world.path, "' is not there"),
      "; deploy/install-deps.sh fetches it, and the key ", world.key, " takes its path"));
}

// What the checkpoint says about its own tokenizer; `kind` is empty when it says nothing.
absl::StatusOr<std::unique_ptr<Tokenizer>> FromMetadata(const std::string& kind,
                                                        const Checkpoint& checkpoint,
                                                        const WorldFile& world) {
  if (kind == "bytes") return NewByteTokenizer();
  if (kind != "world") {
    return absl::FailedPreconditionError(absl::StrCat(
        "its metadata ", kMetaTokenizer, " is '", kind, "'; supported are 'world' and 'bytes'"));
  }
  const auto vocabulary = checkpoint.metadata().find(kMetaVocabulary);
  if (vocabulary == checkpoint.metadata().end()) return WorldFromFile(world);
  auto tokenizer = ParseWorldVocabulary(vocabulary->second);
  if (!tokenizer.ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat("its metadata ", kMetaVocabulary, ": ", tokenizer.status().message()));
  }
  return tokenizer;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Choose(const Checkpoint& checkpoint, int32_t V,
                                                  const WorldFile& world) {
  if (const auto kind = checkpoint.metadata().find(kMetaTokenizer);
      kind != checkpoint.metadata().end()) {
    return FromMetadata(kind->second, checkpoint, world);
  }
  if (V == kWorldRows) return WorldFromFile(world);
  if (V == kByteRows) return NewByteTokenizer();
  return absl::FailedPreconditionError(absl::StrCat(
      "it has ", V, " vocabulary rows and does not say which tokenizer it was trained with; ",
      kWorldRows, " rows mean the World vocabulary and ", kByteRows,
      " bytes; for others a .safetensors file names it in its metadata ", kMetaTokenizer,
      " ('world' or 'bytes') and ", kMetaVocabulary, " (the text of a World-format file)"));
}

}  // namespace

std::vector<int32_t> Tokenizer::Encode(absl::string_view bytes) const {
  std::vector<int32_t> tokens;
  Encode(bytes, &tokens);
  return tokens;
}

std::string Tokenizer::Decode(const std::vector<int32_t>& tokens) const {
  std::string bytes;
  for (const int32_t token : tokens) absl::StrAppend(&bytes, Bytes(token));
  return bytes;
}

// FNV-1a over the length and the bytes of each.
uint64_t Tokenizer::Fingerprint() const {
  uint64_t hash = 0xcbf29ce484222325;
  const auto add = [&](unsigned char byte) { hash = (hash ^ byte) * 0x100000001b3; };
  for (int32_t token = 0; token < vocab_size(); ++token) {
    const absl::string_view bytes = Bytes(token);
    for (int shift = 0; shift < 32; shift += 8) add((bytes.size() >> shift) & 0xff);
    for (const char c : bytes) add(static_cast<unsigned char>(c));
  }
  return hash;
}

std::unique_ptr<Tokenizer> NewByteTokenizer() { return std::make_unique<ByteTokenizer>(); }

absl::StatusOr<std::unique_ptr<Tokenizer>> TokenizerFor(const Checkpoint& checkpoint,
                                                        const std::string& world_path,
                                                        absl::string_view key) {
  SKEIN_ASSIGN_OR_RETURN(const ModelConfig config, checkpoint.Config());
  auto tokenizer = Choose(checkpoint, config.V, {world_path, key});
  if (!tokenizer.ok()) {
    return absl::Status(tokenizer.status().code(),
                        absl::StrCat(checkpoint.path(), ": ", tokenizer.status().message()));
  }
  if ((*tokenizer)->vocab_size() > config.V) {
    return absl::FailedPreconditionError(
        absl::StrCat(checkpoint.path(), ": its tokenizer has ids up to ",
                     (*tokenizer)->vocab_size() - 1, " and the model only ", config.V, " rows"));
  }
  return tokenizer;
}

}  // namespace skein::engine
