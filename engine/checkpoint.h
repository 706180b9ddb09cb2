#pragma once
// Checkpoints: .safetensors and .pth (zip + pickle as PyTorch writes them) behind one reader that
// executes nothing, and writers for both. Files are untrusted: every size and offset is checked
// before use.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/base/file.h"
#include "engine/model_config.h"
#include "kernels/ops.h"

namespace skein::engine {

using kernels::DType;

// A tensor inside a mapped file. `data` points at element 0 and may be unaligned; element [i, j,
// ...] is at data + (i * strides[0] + j * strides[1] + ...) * SizeOf(dtype). Always inside the
// file.
struct TensorView {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;  // in elements, >= 0
  const uint8_t* data = nullptr;

  int64_t elements() const;
  bool contiguous() const;
  // [first, last) of the first dimension, of which there must be one.
  TensorView Rows(int64_t first, int64_t last) const;
  // Row-major fp32 copy; out has elements() floats.
  void CopyToF32(float* out) const;
  // Row-major bytes of the stored type; out has elements() * SizeOf(dtype) bytes.
  void CopyRaw(void* out) const;
};

// A checkpoint open for reading; keeps the file mapped. Thread-safe once opened.
class Checkpoint {
 public:
  virtual ~Checkpoint() = default;
  // Decides by the first bytes of the file, not by its name. Errors: NOT_FOUND, INVALID_ARGUMENT
  // (damaged or hostile: says what and where), UNIMPLEMENTED (legacy or unsupported kinds: says
  // what to do).
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& path);

  const std::vector<TensorView>& tensors() const { return tensors_; }
  const TensorView* Find(absl::string_view name) const;
  // String metadata (.safetensors __metadata__); empty for .pth.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::string& path() const { return path_; }
  absl::StatusOr<ModelConfig> Config() const;
  // Hash of names, shapes, types and all weight bytes: identifies the model that made a state.
  // Reads everything, on so many threads.
  uint64_t Fingerprint(int threads = 1) const;

  // Of the file as it was opened; nothing when the checkpoint was parsed in memory.
  virtual std::optional<base::FileIdentity> identity() const { return std::nullopt; }
  // Of bytes inside the file: see base::MappedFile.
  virtual void Expect(const uint8_t* /*data*/, uint64_t /*bytes*/) const {}
  virtual void Release(const uint8_t* /*data*/, uint64_t /*bytes*/) const {}

 protected:
  std::string path_;
  std::vector<TensorView> tensors_;
  std::map<std::string, std::string> metadata_;
};

// Parsers over memory, for the fuzz targets and tests. `data` must outlive the result.
absl::StatusOr<std::unique_ptr<Checkpoint>> ParseSafetensors(absl::string_view data);
absl::StatusOr<std::unique_ptr<Checkpoint>> ParsePth(absl::string_view data);

// A tensor to write: contiguous row-major bytes of `dtype`.
struct TensorToWrite {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  const void* data = nullptr;
};

// Both write atomically (base::AtomicFile). WritePth makes a file that
// torch.load(weights_only=True) opens.
absl::Status WriteSafetensors(const std::string& path, const std::vector<TensorToWrite>& tensors,
                              const std::map<std::string, std::string>& metadata);
absl::Status WritePth(const std::string& path, const std::vector<TensorToWrite>& tensors);

// Keys of the metadata that Skein writes and reads, so that a checkpoint needs no further file.
inline constexpr char kMetaTokenizer[] = "skein.tokenizer";    // "bytes" or "world"
inline constexpr char kMetaVocabulary[] = "skein.vocabulary";  // World-format file text, when small
inline constexpr char kMetaChatTemplate[] = "skein.chat_template";  // "rwkv" or "none"
inline constexpr char kMetaStops[] = "skein.stops";                 // JSON list of stop strings
inline constexpr char kMetaContext[] = "skein.training_context";    // tokens
inline constexpr char kMetaTokensSeen[] = "skein.tokens_seen";
inline constexpr char kMetaExamples[] =
    "skein.examples";  // JSON list of things to type in `skein chat`
inline constexpr char kMetaDescription[] =
    "skein.description";  // one or two sentences on what it can do

float BF16ToF32(uint16_t bits);
uint16_t F32ToBF16(float value);  // nearest even, NaN stays NaN
float F16ToF32(uint16_t bits);

}  // namespace skein::engine
