#include "engine/models/packed_file.h"

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <memory>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "engine/base/check.h"
#include "engine/base/parallel.h"
#include "engine/checkpoint/bytes.h"

namespace skein::engine {
namespace {

using Stage = LoadProgress::Stage;

constexpr char kMagic[] = "SKEINPK1";
constexpr uint64_t kFixedFields = 8, kPage = 4096;
// Chunks that one thread works on before it tells how far it is.
constexpr int64_t kChunksOfTask = 16;
// A file that was changed so shortly before it was opened may change again within one tick of its
// file system's clock.
constexpr absl::Duration kClockTick = absl::Seconds(2);

uint64_t Chunks(uint64_t image_bytes) { return (image_bytes + kPackedChunk - 1) / kPackedChunk; }

// Calls piece(device memory, offset in the chunk, bytes) for what [offset, offset + bytes) of the
// image consists of.
template <typename Piece>
void ForEachPart(const PackedImage& image, int64_t offset, int64_t bytes, Piece piece) {
  int64_t done = 0;
  for (const std::span<char>& part : image.parts) {
    const int64_t size = std::ssize(part);
    if (offset < size && done < bytes) {
      const int64_t n = std::min(size - offset, bytes - done);
      piece(part.data() + offset, done, n);
      done += n;
      offset = 0;
    } else {
      offset = std::max<int64_t>(0, offset - size);
    }
    if (done == bytes) return;
  }
}

// All chunks of an image, dealt to the device's threads. chunk(index, offset, bytes, staging,
// stream) runs on any of them; staging is host memory for one chunk. The first error ends it.
template <typename Chunk>
absl::Status ForEachChunk(const PackedImage& image, kernels::Device& device,
                          const ModelOptions& options, Stage stage, Chunk chunk) {
  const int64_t total = image.bytes(), chunks = static_cast<int64_t>(Chunks(total));
  const std::thread::id caller = std::this_thread::get_id();
  std::atomic<int64_t> done{0};
  std::atomic<bool> failed{false};
  absl::Mutex mu;
  absl::Status status;
  const auto fail = [&](absl::Status error) {
    absl::MutexLock lock(&mu);
    if (status.ok()) status = std::move(error);
    failed = true;
  };
  const auto task = [&](int64_t index) {
    const auto staging = std::make_unique_for_overwrite<char[]>(kPackedChunk);
    const auto stream = device.NewStream();
    const int64_t end = std::min(chunks, (index + 1) * kChunksOfTask);
    for (int64_t i = index * kChunksOfTask; i < end && !failed; ++i) {
      const int64_t offset = i * static_cast<int64_t>(kPackedChunk);
      const int64_t bytes = std::min<int64_t>(kPackedChunk, total - offset);
      if (absl::Status one = chunk(i, offset, bytes, staging.get(), *stream); !one.ok()) fail(one);
      done += bytes;
    }
    if (options.wanted && !options.wanted()) fail(absl::CancelledError("loading was cancelled"));
    if (options.progress && std::this_thread::get_id() == caller) {
      options.progress({stage, done, total});
    }
  };
  base::ParallelFor(device.info().threads, (chunks + kChunksOfTask - 1) / kChunksOfTask, task);
  return status;
}

void CopyFromImage(const PackedImage& image, kernels::Device& device, kernels::Stream& stream,
                   int64_t offset, int64_t bytes, char* out) {
  ForEachPart(image, offset, bytes, [&](const char* data, int64_t at, int64_t n) {
    device.CopyToHost(out + at, data, n, stream);
  });
  stream.Synchronize();
}

// A disk is not filled to its last byte for something that can be done without.
absl::Status CheckSpace(const std::string& path, uint64_t bytes) {
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  std::error_code error;
  const auto space = std::filesystem::space(folder.empty() ? "." : folder, error);
  if (error || space.available / 10 * 9 > bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      "it takes ", bytes >> 20, " MiB, and the disk has ", space.available >> 20, " MiB left"));
}

}  // namespace

int64_t PackedImage::bytes() const {
  int64_t bytes = 0;
  for (const std::span<char>& part : parts) bytes += std::ssize(part);
  return bytes;
}

uint64_t PackedHeaderBytes(uint64_t image_bytes) {
  const uint64_t fields = kFixedFields + Chunks(image_bytes) + 1;
  return (fields * sizeof(uint64_t) + kPage - 1) / kPage * kPage;
}

std::string EncodePackedHeader(const PackedHeader& header) {
  std::string out(kMagic, sizeof(uint64_t));
  const base::FileIdentity& checkpoint = header.checkpoint;
  for (const uint64_t field : {header.layout, header.fingerprint, checkpoint.inode,
                               checkpoint.bytes, static_cast<uint64_t>(checkpoint.modified),
                               static_cast<uint64_t>(checkpoint.changed), header.image_bytes}) {
    AppendLittleEndian(field, &out);
  }
  for (const uint64_t hash : header.hashes) AppendLittleEndian(hash, &out);
  AppendLittleEndian(base::Hash64(out.data(), out.size()), &out);
  out.resize(PackedHeaderBytes(header.image_bytes));
  return out;
}

absl::StatusOr<PackedHeader> ParsePackedHeader(absl::string_view data, uint64_t image_bytes) {
  const uint64_t chunks = Chunks(image_bytes), fields = kFixedFields + chunks;
  if (data.size() != PackedHeaderBytes(image_bytes)) {
    return absl::DataLossError("its header is cut");
  }
  const auto field = [&](uint64_t i) {
    return LoadLittleEndian<uint64_t>(data.data() + i * sizeof(uint64_t));
  };
  if (data.substr(0, sizeof(uint64_t)) != kMagic) {
    return absl::DataLossError("it is no file of packed weights");
  }
  if (field(fields) != base::Hash64(data.data(), fields * sizeof(uint64_t))) {
    return absl::DataLossError("its header is damaged: the checksum is wrong");
  }
  PackedHeader header;
  header.layout = field(1);
  header.fingerprint = field(2);
  header.checkpoint = {field(3), field(4), static_cast<int64_t>(field(5)),
                       static_cast<int64_t>(field(6))};
  header.image_bytes = field(7);
  if (header.image_bytes != image_bytes) {
    return absl::DataLossError("its header says another size than it has");
  }
  header.hashes.resize(chunks);
  for (uint64_t i = 0; i < chunks; ++i) header.hashes[i] = field(kFixedFields + i);
  return header;
}

PackedFile::PackedFile(const Checkpoint& checkpoint, std::string path)
    : checkpoint_(checkpoint), path_(std::move(path)), opened_(absl::Now()) {}

std::string PackedFile::PathFor(const std::string& checkpoint, const std::string& tier,
                                DType weights) {
  const char* type = weights == DType::kF32    ? "fp32"
                     : weights == DType::kI8   ? "int8"
                     : weights == DType::kI8A8 ? "int8a8"
                                               : "bf16";
  return absl::StrCat(checkpoint, ".", tier, "-", type, ".packed");
}

uint64_t PackedFile::Fingerprint(int threads) {
  if (!fingerprint_.has_value()) fingerprint_ = checkpoint_.Fingerprint(threads);
  return *fingerprint_;
}

absl::Status PackedFile::Read(const PackedImage& image, kernels::Device& device,
                              const ModelOptions& options) {
  read_ = TryRead(image, device, options);
  // So that the next start does not read the checkpoint.
  if (read_->ok() && stale_identity_) written_ = TryWrite(image, device, options);
  return *read_;
}

absl::Status PackedFile::Write(const PackedImage& image, kernels::Device& device,
                               const ModelOptions& options) {
  written_ = TryWrite(image, device, options);
  return *written_;
}

absl::Status PackedFile::TryRead(const PackedImage& image, kernels::Device& device,
                                 const ModelOptions& options) {
  SKEIN_ASSIGN_OR_RETURN(const auto file, base::OpenFile::Open(path_));
  const uint64_t bytes = image.bytes(), begin = PackedHeaderBytes(bytes);
  if (file->size() != begin + bytes) {
    return absl::DataLossError(
        absl::StrCat("it has ", file->size(), " bytes where these weights take ", begin + bytes));
  }
  std::string data(begin, '\0');
  SKEIN_RETURN_IF_ERROR(file->Read(0, data.data(), data.size()));
  SKEIN_ASSIGN_OR_RETURN(const PackedHeader header, ParsePackedHeader(data, bytes));
  SKEIN_RETURN_IF_ERROR(CheckHeader(header, image, device.info().threads));
  return ForEachChunk(
      image, device, options, Stage::kReading,
      [&](int64_t i, int64_t offset, int64_t n, char* staging, kernels::Stream& stream) {
        SKEIN_RETURN_IF_ERROR(file->Read(begin + offset, staging, n));
        if (base::Hash64(staging, n) != header.hashes[i]) {
          return absl::DataLossError(
              absl::StrCat("MiB ", i, " of it is damaged: the checksum is wrong"));
        }
        ForEachPart(image, offset, n, [&](char* to, int64_t at, int64_t count) {
          device.CopyToDevice(to, staging + at, count, stream);
        });
        stream.Synchronize();
        return absl::OkStatus();
      });
}

absl::Status PackedFile::CheckHeader(const PackedHeader& header, const PackedImage& image,
                                     int threads) {
  if (header.layout != image.layout) {
    return absl::FailedPreconditionError("it was made by another version or from another model");
  }
  const bool known = header.checkpoint != base::FileIdentity{};
  if (known && checkpoint_.identity() == header.checkpoint) {
    fingerprint_ = header.fingerprint;
    return absl::OkStatus();
  }
  if (Fingerprint(threads) != header.fingerprint) {
    return absl::FailedPreconditionError("the checkpoint has changed since it was made");
  }
  stale_identity_ = true;
  return absl::OkStatus();
}

absl::Status PackedFile::TryWrite(const PackedImage& image, kernels::Device& device,
                                  const ModelOptions& options) {
  PackedHeader header;
  header.layout = image.layout;
  header.image_bytes = image.bytes();
  header.hashes.resize(Chunks(header.image_bytes));
  SKEIN_RETURN_IF_ERROR(
      CheckSpace(path_, PackedHeaderBytes(header.image_bytes) + header.image_bytes));
  // Before the long work: a folder that cannot be written to is known at once.
  SKEIN_ASSIGN_OR_RETURN(const auto file, base::AtomicFile::Create(path_));
  header.fingerprint = Fingerprint(device.info().threads);
  const std::optional<base::FileIdentity> opened = checkpoint_.identity();
  SKEIN_ASSIGN_OR_RETURN(const base::FileIdentity now, base::Identify(checkpoint_.path()));
  if (opened != now) return absl::AbortedError("the checkpoint has changed while it was loaded");
  if (absl::FromUnixNanos(now.changed) + kClockTick < opened_) header.checkpoint = now;
  SKEIN_RETURN_IF_ERROR(ForEachChunk(
      image, device, {}, Stage::kWriting,
      [&](int64_t i, int64_t offset, int64_t n, char* staging, kernels::Stream& stream) {
        CopyFromImage(image, device, stream, offset, n, staging);
        header.hashes[i] = base::Hash64(staging, n);
        return absl::OkStatus();
      }));
  SKEIN_RETURN_IF_ERROR(file->Append(EncodePackedHeader(header)));
  const auto staging = std::make_unique_for_overwrite<char[]>(kPackedChunk);
  const auto stream = device.NewStream();
  const int64_t total = image.bytes();
  for (int64_t offset = 0; offset < total; offset += kPackedChunk) {
    const int64_t n = std::min<int64_t>(kPackedChunk, total - offset);
    CopyFromImage(image, device, *stream, offset, n, staging.get());
    SKEIN_RETURN_IF_ERROR(file->Append(staging.get(), n));
    if (options.wanted && !options.wanted()) return absl::CancelledError("loading was cancelled");
    if (options.progress) options.progress({Stage::kWriting, offset + n, total});
  }
  return file->Commit();
}

}  // namespace skein::engine
