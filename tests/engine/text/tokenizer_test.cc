// The byte tokenizer, and which tokenizer a checkpoint gets.

#include "engine/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "engine/base/file.h"
#include "engine/checkpoint.h"
#include "tests/temp_folder.h"

namespace skein::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string ByteVocabulary() {
  std::string text;
  for (int b = 0; b < 256; ++b)
    absl::StrAppend(&text, b + 1, " b'\\x", absl::Hex(b, absl::kZeroPad2), "' 1\n");
  return text;
}

// The smallest RWKV-7 that is recognised, with V rows; a description is enough, weights are zero.
class TinyCheckpoint : public Checkpoint {
 public:
  TinyCheckpoint(int64_t V, std::map<std::string, std::string> metadata) {
    path_ = "tiny.safetensors";
    metadata_ = std::move(metadata);
    const int64_t C = 16, D = 8, F = 64;
    Add("emb.weight", {V, C});
    Add("head.weight", {V, C});
    for (const char* name :
         {"ln_out", "blocks.0.ln0", "blocks.0.ln1", "blocks.0.ln2", "blocks.0.att.ln_x"}) {
      Add(absl::StrCat(name, ".weight"), {C});
      Add(absl::StrCat(name, ".bias"), {C});
    }
    for (const char* name :
         {"x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "w0", "a0", "v0", "k_k", "k_a"}) {
      Add(absl::StrCat("blocks.0.att.", name), {1, 1, C});
    }
    for (const char* name : {"w", "a", "v", "g"}) {
      Add(absl::StrCat("blocks.0.att.", name, "1"), {C, D});
      Add(absl::StrCat("blocks.0.att.", name, "2"), {D, C});
    }
    Add("blocks.0.att.r_k", {1, C});
    for (const char* name : {"receptance", "key", "value", "output"}) {
      Add(absl::StrCat("blocks.0.att.", name, ".weight"), {C, C});
    }
    Add("blocks.0.ffn.x_k", {1, 1, C});
    Add("blocks.0.ffn.key.weight", {F, C});
    Add("blocks.0.ffn.value.weight", {C, F});
  }

 private:
  void Add(std::string name, std::vector<int64_t> shape) {
    TensorView tensor;
    tensor.name = std::move(name);
    tensor.strides.assign(shape.size(), 1);
    for (size_t i = shape.size(); i-- > 1;) tensor.strides[i - 1] = tensor.strides[i] * shape[i];
    tensor.shape = std::move(shape);
    tensors_.push_back(std::move(tensor));
  }
};

std::string ErrorOf(const Checkpoint& checkpoint, const std::string& world_path) {
  const auto tokenizer = TokenizerFor(checkpoint, world_path);
  EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kFailedPrecondition) << tokenizer.status();
  EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr("tiny.safetensors: "));
  return std::string(tokenizer.status().message());
}

TEST(ByteTokenizerTest, EveryByteIsATokenAndIdZeroIsNone) {
  const auto tokenizer = NewByteTokenizer();
  EXPECT_EQ(tokenizer->kind(), "bytes");
  EXPECT_EQ(tokenizer->vocab_size(), 257);
  std::string all;
  for (int b = 0; b < 256; ++b) all.push_back(static_cast<char>(b));
  const std::vector<int32_t> tokens = tokenizer->Encode(all);
  for (int b = 0; b < 256; ++b) EXPECT_EQ(tokens[b], b + 1);
  EXPECT_EQ(tokenizer->Decode(tokens), all);
  EXPECT_TRUE(tokenizer->IsValid(0));
  EXPECT_EQ(tokenizer->Bytes(0), "");
  for (const int32_t id : {-1, 257}) {
    EXPECT_FALSE(tokenizer->IsValid(id));
    EXPECT_EQ(tokenizer->Bytes(id), "");
  }
}

TEST(TokenizerForTest, MetadataDecides) {
  const auto bytes = TokenizerFor(TinyCheckpoint(300, {{kMetaTokenizer, "bytes"}}), "");
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  EXPECT_EQ((*bytes)->kind(), "bytes");
  const TinyCheckpoint own(
      300, {{kMetaTokenizer, "world"}, {kMetaVocabulary, ByteVocabulary() + "257 'hi' 2\n"}});
  const auto world = TokenizerFor(own, "/not/needed");
  ASSERT_TRUE(world.ok()) << world.status();
  EXPECT_THAT((*world)->Encode("hi"), ElementsAre(257));
}

TEST(TokenizerForTest, RowsDecideWithoutMetadata) {
  const auto bytes = TokenizerFor(TinyCheckpoint(257, {}), "");
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  EXPECT_EQ((*bytes)->kind(), "bytes");
  const std::string path = TempFolder() + "/vocabulary.txt";
  ASSERT_TRUE(base::WriteFileAtomically(path, ByteVocabulary()).ok());
  const auto world = TokenizerFor(TinyCheckpoint(65536, {}), path);
  ASSERT_TRUE(world.ok()) << world.status();
  EXPECT_EQ((*world)->kind(), "world");
}

TEST(TokenizerForTest, SaysWhatIsMissing) {
  EXPECT_THAT(
      ErrorOf(TinyCheckpoint(65536, {}), "/no/such/vocabulary"),
      AllOf(HasSubstr("'/no/such/vocabulary' is not there"), HasSubstr("model.vocabulary")));
  EXPECT_THAT(ErrorOf(TinyCheckpoint(65536, {}), ""), HasSubstr("no path to it is given"));
  EXPECT_THAT(ErrorOf(TinyCheckpoint(300, {{kMetaTokenizer, "world"}}), "/no/such/vocabulary"),
              HasSubstr("rwkv_vocab_v20230424.txt"));
  EXPECT_THAT(ErrorOf(TinyCheckpoint(50277, {}), ""), HasSubstr("50277 vocabulary rows"));
  EXPECT_THAT(ErrorOf(TinyCheckpoint(300, {{kMetaTokenizer, "bpe"}}), ""), HasSubstr("'bpe'"));
  EXPECT_THAT(
      ErrorOf(TinyCheckpoint(300, {{kMetaTokenizer, "world"}, {kMetaVocabulary, "1 x\n"}}), ""),
      HasSubstr("skein.vocabulary: line 1"));
  EXPECT_THAT(ErrorOf(TinyCheckpoint(100, {{kMetaTokenizer, "bytes"}}), ""),
              HasSubstr("ids up to 256 and the model only 100 rows"));
}

}  // namespace
}  // namespace skein::engine
