#pragma once
// "binidx" (Megatron's memory-mapped dataset): PREFIX.idx describes the items of PREFIX.bin.
// Little-endian.
//   .idx: "MMIDIDX\0\0", u64 version 1, u8 type, u64 items, u64 documents, i32 sizes[items], i64
//   byte offsets[items], i64 document_index[documents];  .bin: raw tokens, each document ended by
//   id 0.

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "trainer/tokens.h"

namespace skein::trainer {

// `path`: the prefix, or one of the two files. Untrusted: sizes and offsets are checked; the items
// must lie one after the other from the start of .bin, as all known writers put them.
absl::StatusOr<TokenStream> ReadBinidx(const std::string& path);

// Writes u16 tokens, or i32 when an id needs it. Both files are atomic, .idx last: without it there
// is no data set.
absl::Status WriteBinidx(const std::string& prefix, const TokenStream& stream);

}  // namespace skein::trainer
