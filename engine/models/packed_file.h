#pragma once
// Weights as one tier's operators read them, kept in a file beside the checkpoint: the next start
// copies them to memory instead of packing.
//
//   header   u64 each, little endian: magic, layout, fingerprint, inode, bytes, modified, changed,
//            bytes of the image, a hash of each MiB of the image, a hash of all that is before
//   image    from the next multiple of 4096 on
//
// Nothing in the file is believed before it was checked: its size follows from the weights that the
// loader expects, every hash is compared, and what does not fit is packed anew. A file that becomes
// shorter while it is read is an error like any other, so it is read and not mapped; the copy also
// lies in huge pages, which a mapping of a file does not.
//
// Whether the file belongs to the checkpoint: `fingerprint` is that of the checkpoint's contents.
// To compare it reads them all, so they are taken for the same when inode, size and times of the
// checkpoint are those that they were made from.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "engine/base/file.h"
#include "engine/checkpoint.h"
#include "engine/models/model.h"
#include "kernels/device.h"

namespace skein::engine {

// What lies in memory once a model is loaded.
struct PackedImage {
  uint64_t layout = 0;                 // a hash of all that decides which weight lies where
  std::vector<std::span<char>> parts;  // device memory; one after the other in the file

  int64_t bytes() const;
};

struct PackedHeader {
  uint64_t layout = 0;
  uint64_t fingerprint = 0;         // of the checkpoint
  base::FileIdentity checkpoint{};  // all zero: not known
  uint64_t image_bytes = 0;
  std::vector<uint64_t> hashes;  // of each kPackedChunk bytes of the image
};
inline constexpr uint64_t kPackedChunk = 1 << 20;

// Bytes before an image of this size.
uint64_t PackedHeaderBytes(uint64_t image_bytes);
// As many bytes as PackedHeaderBytes says.
std::string EncodePackedHeader(const PackedHeader& header);
// `data` has PackedHeaderBytes(image_bytes) bytes. DATA_LOSS: says what is wrong.
absl::StatusOr<PackedHeader> ParsePackedHeader(absl::string_view data, uint64_t image_bytes);

// The packed file of one checkpoint, for one load. Used by one thread.
class PackedFile {
 public:
  // The checkpoint outlives it and was opened just now.
  PackedFile(const Checkpoint& checkpoint, std::string path);
  // As it is called beside a checkpoint.
  static std::string PathFor(const std::string& checkpoint, const std::string& tier, DType weights);

  // Fills the image; options.progress and .wanted are asked meanwhile. NOT_FOUND: there is none;
  // FAILED_PRECONDITION: it was made from something else; DATA_LOSS: damaged; CANCELLED; what the
  // system says. After an error the image may hold anything.
  absl::Status Read(const PackedImage& image, kernels::Device& device, const ModelOptions& options);
  absl::Status Write(const PackedImage& image, kernels::Device& device,
                     const ModelOptions& options);

  // For whoever tells it: how Read and Write ended; nothing: they were not called.
  const std::optional<absl::Status>& read() const { return read_; }
  const std::optional<absl::Status>& written() const { return written_; }
  const std::string& path() const { return path_; }
  // Of the checkpoint: as a file that fits says, else computed.
  uint64_t Fingerprint(int threads);

 private:
  absl::Status TryRead(const PackedImage& image, kernels::Device& device,
                       const ModelOptions& options);
  absl::Status TryWrite(const PackedImage& image, kernels::Device& device,
                        const ModelOptions& options);
  absl::Status CheckHeader(const PackedHeader& header, const PackedImage& image, int threads);

  const Checkpoint& checkpoint_;
  const std::string path_;
  const absl::Time opened_;
  std::optional<uint64_t> fingerprint_;
  bool stale_identity_ = false;  // the file fits but does not know the checkpoint by its times
  std::optional<absl::Status> read_, written_;
};

}  // namespace skein::engine
