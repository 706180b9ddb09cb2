// World-format vocabulary files, and the tokenizer that they make.

#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/base/file.h"
#include "engine/text/byte_trie.h"
#include "engine/text/python_literal.h"
#include "engine/tokenizer.h"

namespace skein::engine {
namespace {

// Bounds on what an untrusted file can make us allocate. The public World file has 65529 tokens of
// up to 128 bytes in 1.1 MB.
constexpr size_t kMaxFileBytes = size_t{16} << 20;
constexpr size_t kMaxPieceBytes = 1024;
constexpr size_t kMaxTotalPieceBytes = size_t{4} << 20;  // bounds the nodes of the trie
constexpr int32_t kMaxIds = int32_t{1} << 20;

class WorldTokenizer : public Tokenizer {
 public:
  WorldTokenizer(std::vector<std::string> pieces, const std::vector<int32_t>& order)
      : pieces_(std::move(pieces)), trie_(pieces_, order) {}

  const std::string& kind() const override {
    static const std::string kKind = "world";
    return kKind;
  }
  int32_t vocab_size() const override { return static_cast<int32_t>(pieces_.size()); }

  using Tokenizer::Encode;
  void Encode(absl::string_view bytes, std::vector<int32_t>* tokens) const override {
    const auto* p = reinterpret_cast<const uint8_t*>(bytes.data());
    for (size_t left = bytes.size(); left > 0;) {
      const ByteTrie::Match match = trie_.Longest(p, left);  // never empty: each byte has a token
      tokens->push_back(match.id);
      p += match.length;
      left -= match.length;
    }
  }

  absl::string_view Bytes(int32_t token) const override {
    return token > 0 && token < vocab_size() ? absl::string_view(pieces_[token])
                                             : absl::string_view();
  }
  bool IsValid(int32_t token) const override {
    return token == kEndOfDocument || !Bytes(token).empty();
  }

 private:
  const std::vector<std::string> pieces_;  // by id
  const ByteTrie trie_;
};

// A file being read.
struct Vocabulary {
  std::vector<std::string> pieces;  // by id; empty: unused
  std::vector<int32_t> lines;       // by id; the line that defined it
  std::vector<int32_t> order;       // ids in use
  size_t total_bytes = 0;
};

absl::Status ParseLine(absl::string_view line, int32_t number, Vocabulary* vocabulary) {
  const size_t first = line.find(' ');
  const size_t last = line.rfind(' ');
  if (first == absl::string_view::npos || first == last) {
    return absl::InvalidArgumentError("expected `<id> <python literal> <byte length>`");
  }
  int32_t id = 0;
  int32_t length = 0;
  if (!absl::SimpleAtoi(line.substr(0, first), &id) || id < 1 || id >= kMaxIds) {
    return absl::InvalidArgumentError(
        absl::StrCat("the id must be a number from 1 to ", kMaxIds - 1, " (0 ends a document)"));
  }
  if (!absl::SimpleAtoi(line.substr(last + 1), &length)) {
    return absl::InvalidArgumentError("the byte length at the end of the line is not a number");
  }
  SKEIN_ASSIGN_OR_RETURN(std::string piece,
                         ParsePythonLiteral(line.substr(first + 1, last - first - 1)));
  if (piece.empty() || piece.size() > kMaxPieceBytes) {
    return absl::InvalidArgumentError(absl::StrCat("a token of ", piece.size(), " bytes; 1 to ",
                                                   kMaxPieceBytes, " are possible"));
  }
  if (static_cast<int64_t>(piece.size()) != length) {
    return absl::InvalidArgumentError(
        absl::StrCat("the literal has ", piece.size(), " bytes, the line says ", length));
  }
  if (id >= vocabulary->pieces.size()) {
    vocabulary->pieces.resize(id + 1);
    vocabulary->lines.resize(id + 1);
  }
  if (!vocabulary->pieces[id].empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("id ", id, " is already in line ", vocabulary->lines[id]));
  }
  vocabulary->total_bytes += piece.size();
  if (vocabulary->total_bytes > kMaxTotalPieceBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the tokens have more than ", kMaxTotalPieceBytes, " bytes in all"));
  }
  vocabulary->pieces[id] = std::move(piece);
  vocabulary->lines[id] = number;
  vocabulary->order.push_back(id);
  return absl::OkStatus();
}

absl::Status ParseLines(absl::string_view text, Vocabulary* vocabulary) {
  for (int32_t number = 1; !text.empty(); ++number) {
    const size_t end = std::min(text.find('\n'), text.size());
    absl::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    if (absl::Status status = ParseLine(line, number, vocabulary); !status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("line ", number, ": ", status.message()));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckUnique(const Vocabulary& vocabulary) {
  for (size_t i = 1; i < vocabulary.order.size(); ++i) {
    const int32_t a = vocabulary.order[i - 1];
    const int32_t b = vocabulary.order[i];
    if (vocabulary.pieces[a] != vocabulary.pieces[b]) continue;
    const auto [first, second] = std::minmax(vocabulary.lines[a], vocabulary.lines[b]);
    return absl::InvalidArgumentError(
        absl::StrCat("line ", second, ": the same bytes as the token of line ", first));
  }
  return absl::OkStatus();
}

// Encoding must work for any text, so that nothing a user types can be refused or dropped.
absl::Status CheckEveryByte(const Vocabulary& vocabulary) {
  std::array<bool, 256> has{};
  for (const int32_t id : vocabulary.order) {
    const std::string& piece = vocabulary.pieces[id];
    if (piece.size() == 1) has[static_cast<uint8_t>(piece[0])] = true;
  }
  const auto missing = std::count(has.begin(), has.end(), false);
  if (missing == 0) return absl::OkStatus();
  const auto byte = std::find(has.begin(), has.end(), false) - has.begin();
  return absl::InvalidArgumentError(
      absl::StrCat(missing, " of the 256 bytes have no token of their own, the first is 0x",
                   absl::Hex(byte, absl::kZeroPad2),
                   "; a vocabulary needs all of them so that it can encode any text"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> ParseWorldVocabulary(absl::string_view text) {
  if (text.size() > kMaxFileBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a vocabulary of ", text.size(), " bytes; at most ", kMaxFileBytes, " are possible"));
  }
  if (text.empty()) return absl::InvalidArgumentError("the vocabulary is empty");
  Vocabulary vocabulary;
  SKEIN_RETURN_IF_ERROR(ParseLines(text, &vocabulary));
  std::sort(vocabulary.order.begin(), vocabulary.order.end(),
            [&](int32_t a, int32_t b) { return vocabulary.pieces[a] < vocabulary.pieces[b]; });
  SKEIN_RETURN_IF_ERROR(CheckUnique(vocabulary));
  SKEIN_RETURN_IF_ERROR(CheckEveryByte(vocabulary));
  return std::make_unique<WorldTokenizer>(std::move(vocabulary.pieces), vocabulary.order);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadWorldVocabulary(const std::string& path) {
  SKEIN_ASSIGN_OR_RETURN(const std::string text, base::ReadFile(path));
  auto tokenizer = ParseWorldVocabulary(text);
  if (!tokenizer.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", tokenizer.status().message()));
  }
  return tokenizer;
}

}  // namespace skein::engine
