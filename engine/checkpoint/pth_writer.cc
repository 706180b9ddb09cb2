// Writes .pth: an OrderedDict of tensors, each with its own storage, as torch.save would write it.

#include <limits>

#include "engine/base/check.h"
#include "engine/base/file.h"
#include "engine/checkpoint/bytes.h"
#include "engine/checkpoint/parsed_checkpoint.h"
#include "engine/checkpoint/tensor_source.h"
#include "engine/checkpoint/zip_writer.h"

namespace skein::engine {
namespace {

constexpr char kFolder[] = "archive/";

// Pickle of protocol 2, without a memo: nothing in it is used twice.
class Pickler {
 public:
  std::string Write(const std::vector<TensorSource>& tensors) {
    out_ = "\x80\x02";
    EmptyOrderedDict();
    out_ += '(';
    for (size_t i = 0; i < tensors.size(); ++i) {
      String(tensors[i].name);
      Tensor(tensors[i], i);
    }
    out_ += "u.";
    return std::move(out_);
  }

 private:
  void EmptyOrderedDict() { out_ += "ccollections\nOrderedDict\n)R"; }
  void String(absl::string_view text) {
    out_ += 'X';
    AppendLittleEndian<uint32_t>(text.size(), &out_);
    out_.append(text.data(), text.size());
  }
  void Integer(int64_t value) {
    if (value >= 0 && value <= std::numeric_limits<int32_t>::max()) {
      out_ += 'J';
      AppendLittleEndian<int32_t>(value, &out_);
    } else {
      out_ += "\x8a\x08";
      AppendLittleEndian<int64_t>(value, &out_);
    }
  }
  void Integers(const std::vector<int64_t>& values) {
    out_ += '(';
    for (int64_t value : values) Integer(value);
    out_ += 't';
  }
  // _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)
  void Tensor(const TensorSource& tensor, size_t key) {
    out_ += "ctorch._utils\n_rebuild_tensor_v2\n((";
    String("storage");
    out_ += absl::StrCat("ctorch\n",
                         tensor.dtype == DType::kF32    ? "FloatStorage"
                         : tensor.dtype == DType::kBF16 ? "BFloat16Storage"
                                                        : "HalfStorage",
                         "\n");
    String(absl::StrCat(key));
    String("cpu");
    Integer(tensor.size() / SizeOf(tensor.dtype));
    out_ += "tQ";
    Integer(0);
    Integers(tensor.shape);
    Integers(RowMajorStrides(tensor.shape));
    out_ += '\x89';
    EmptyOrderedDict();
    out_ += "tR";
  }

  std::string out_;
};

}  // namespace

absl::Status WritePthFrom(const std::string& path, const std::vector<TensorSource>& tensors) {
  SKEIN_RETURN_IF_ERROR(CheckSources(tensors));
  SKEIN_ASSIGN_OR_RETURN(auto file, base::AtomicFile::Create(path));
  ZipWriter zip(file.get());
  const auto add = [&](absl::string_view name, absl::string_view contents) {
    return zip.Add(absl::StrCat(kFolder, name), contents);
  };
  SKEIN_RETURN_IF_ERROR(add("data.pkl", Pickler().Write(tensors)));
  SKEIN_RETURN_IF_ERROR(add(".format_version", "1"));
  SKEIN_RETURN_IF_ERROR(add(".storage_alignment", "64"));
  SKEIN_RETURN_IF_ERROR(add("byteorder", "little"));
  std::vector<uint8_t> scratch;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const uint64_t size = tensors[i].size();
    const void* bytes = size == 0 ? "" : tensors[i].bytes(&scratch);
    SKEIN_RETURN_IF_ERROR(add(absl::StrCat("data/", i), {static_cast<const char*>(bytes), size}));
  }
  SKEIN_RETURN_IF_ERROR(add("version", "3\n"));
  SKEIN_RETURN_IF_ERROR(zip.Finish());
  return file->Commit();
}

absl::Status WritePth(const std::string& path, const std::vector<TensorToWrite>& tensors) {
  return WritePthFrom(path, ToSources(tensors));
}

}  // namespace skein::engine
