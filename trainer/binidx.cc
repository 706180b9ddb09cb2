#include "trainer/binidx.h"

#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/base/check.h"

namespace skein::trainer {
namespace {

constexpr char kMagic[9] = {'M', 'M', 'I', 'D', 'I', 'D', 'X', 0, 0};
constexpr size_t kHeaderBytes = sizeof(kMagic) + 8 + 1 + 8 + 8;

std::string Prefix(const std::string& path) {
  if (absl::EndsWith(path, ".idx") || absl::EndsWith(path, ".bin"))
    return path.substr(0, path.size() - 4);
  return path;
}

int WidthOf(uint8_t type) {  // of the integer types that can hold token ids
  switch (type) {
    case 1:
      return 1;
    case 4:
      return 4;
    case 8:
      return 2;
    default:
      return 0;
  }
}

template <typename T>
T Load(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}

template <typename T>
void Store(std::string* out, T value) {
  out->append(reinterpret_cast<const char*>(&value), sizeof(T));
}

absl::Status Bad(const std::string& path, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", what));
}

struct Index {
  int width = 0;
  int64_t tokens = 0;
  std::vector<int64_t> ends;
};

absl::StatusOr<Index> ParseIndex(const base::MappedFile& file) {
  const std::string& path = file.path();
  const uint8_t* p = file.data();
  if (file.size() < kHeaderBytes || std::memcmp(p, kMagic, sizeof(kMagic)) != 0) {
    return Bad(path, "not a binidx index (it must start with MMIDIDX)");
  }
  p += sizeof(kMagic);
  if (Load<uint64_t>(p) != 1)
    return Bad(path, absl::StrCat("binidx version ", Load<uint64_t>(p), ", expected 1"));
  Index index;
  index.width = WidthOf(p[8]);
  if (index.width == 0) {
    return Bad(path,
               absl::StrCat("token type code ", int{p[8]}, " (u8 = 1, i32 = 4, u16 = 8 are read)"));
  }
  const uint64_t items = Load<uint64_t>(p + 9), documents = Load<uint64_t>(p + 17);
  const uint64_t room = file.size() - kHeaderBytes;
  if (items > room / 12 || documents > room / 8 || items * 12 + documents * 8 != room) {
    return Bad(path, absl::StrCat("says ", items, " items and ", documents,
                                  " documents, which does not fit its ", file.size(), " bytes"));
  }
  const uint8_t* sizes = file.data() + kHeaderBytes;
  const uint8_t* offsets = sizes + items * 4;
  index.ends.reserve(items);
  for (uint64_t i = 0; i < items; ++i) {
    const int32_t size = Load<int32_t>(sizes + i * 4);
    const int64_t offset = Load<int64_t>(offsets + i * 8);
    if (size < 0) return Bad(path, absl::StrCat("item ", i, " has the size ", size));
    if (offset != index.tokens * index.width) {
      return Bad(path,
                 absl::StrCat("item ", i, " starts at byte ", offset, ", expected ",
                              index.tokens * index.width, " (items must follow one another)"));
    }
    index.tokens += size;
    index.ends.push_back(index.tokens);
  }
  return index;
}

}  // namespace

absl::StatusOr<TokenStream> ReadBinidx(const std::string& path) {
  const std::string prefix = Prefix(path);
  SKEIN_ASSIGN_OR_RETURN(std::unique_ptr<base::MappedFile> idx,
                         base::MappedFile::Open(prefix + ".idx"));
  SKEIN_ASSIGN_OR_RETURN(Index index, ParseIndex(*idx));
  if (index.tokens == 0) return Bad(prefix + ".idx", "holds no tokens");
  SKEIN_ASSIGN_OR_RETURN(std::unique_ptr<base::MappedFile> bin,
                         base::MappedFile::Open(prefix + ".bin"));
  if (bin->size() < static_cast<uint64_t>(index.tokens) * static_cast<uint64_t>(index.width)) {
    return Bad(prefix + ".bin", absl::StrCat("has ", bin->size(), " bytes, the index needs ",
                                             index.tokens * index.width, " (truncated?)"));
  }
  const uint8_t* data = bin->data();
  return TokenStream(std::move(bin), data, index.width, index.tokens, std::move(index.ends));
}

absl::Status WriteBinidx(const std::string& prefix, const TokenStream& stream) {
  std::vector<int64_t> ends = stream.DocumentEnds();
  if (ends.empty() || ends.back() != stream.size()) ends.push_back(stream.size());
  const bool wide = stream.MaxToken() > UINT16_MAX;
  const int64_t width = wide ? 4 : 2;
  SKEIN_ASSIGN_OR_RETURN(std::unique_ptr<base::AtomicFile> bin,
                         base::AtomicFile::Create(prefix + ".bin"));
  std::string index(kMagic, sizeof(kMagic)), sizes, offsets, bytes;
  std::vector<int32_t> tokens;
  int64_t begin = 0;
  for (int64_t end : ends) {
    tokens.resize(static_cast<size_t>(end - begin));
    stream.Read(begin, end - begin, tokens.data());
    bytes.clear();
    for (int32_t token : tokens)
      bytes.append(reinterpret_cast<const char*>(&token), static_cast<size_t>(width));
    SKEIN_RETURN_IF_ERROR(bin->Append(bytes));
    if (end - begin > INT32_MAX) return Bad(prefix, "a document has more than 2^31 tokens");
    Store<int32_t>(&sizes, static_cast<int32_t>(end - begin));
    Store<int64_t>(&offsets, begin * width);
    begin = end;
  }
  Store<uint64_t>(&index, 1);
  Store<uint8_t>(&index, wide ? 4 : 8);
  Store<uint64_t>(&index, ends.size());
  Store<uint64_t>(&index, ends.size() + 1);
  absl::StrAppend(&index, sizes, offsets);
  for (size_t d = 0; d <= ends.size(); ++d) Store<int64_t>(&index, static_cast<int64_t>(d));
  SKEIN_RETURN_IF_ERROR(bin->Commit());
  return base::WriteFileAtomically(prefix + ".idx", index);
}

}  // namespace skein::trainer
