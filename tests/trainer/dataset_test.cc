#include "trainer/dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "engine/base/file.h"
#include "tests/temp_folder.h"
#include "trainer/binidx.h"

namespace skein::trainer {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class DatasetTest : public testing::Test {
 protected:
  DatasetTest() : folder_(TempFolder() + "/dataset_test") {
    std::filesystem::remove_all(folder_);
    EXPECT_TRUE(base::MakeFolder(folder_).ok());
    config_.validation_fraction = 0;
  }
  std::string Write(const std::string& name, const std::string& text) {
    EXPECT_TRUE(base::WriteFileAtomically(folder_ + "/" + name, text).ok());
    return folder_ + "/" + name;
  }
  absl::StatusOr<Dataset> Load(const std::string& path) {
    config_.train = path;
    return LoadDataset(config_, *tokenizer_);
  }
  static std::vector<int32_t> All(const TokenStream& stream) {
    std::vector<int32_t> tokens(static_cast<size_t>(stream.size()));
    stream.Read(0, stream.size(), tokens.data());
    return tokens;
  }
  static std::vector<float> Weights(const TokenStream& stream) {
    std::vector<float> weights(static_cast<size_t>(stream.size()));
    stream.ReadWeights(0, stream.size(), weights.data());
    return weights;
  }

  const std::string folder_;
  DataConfig config_;
  const std::unique_ptr<engine::Tokenizer> tokenizer_ = engine::NewByteTokenizer();
};

TEST_F(DatasetTest, ATextFileIsOneDocument) {
  const auto data = Load(Write("a.txt", "ab"));
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_THAT(All(data->train), ElementsAre('a' + 1, 'b' + 1, 0));
  EXPECT_FALSE(data->train.weighted());
  EXPECT_EQ(data->validation.size(), 0);
}

TEST_F(DatasetTest, AFolderIsItsFilesInOrder) {
  Write("f2", "b");
  Write("f1", "a");
  Write(".hidden", "c");
  const auto data = Load(folder_);
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_THAT(All(data->train), ElementsAre('a' + 1, 0, 'b' + 1, 0));
  EXPECT_THAT(data->train.DocumentEnds(), ElementsAre(2, 4));
}

TEST_F(DatasetTest, MessagesWeighTheAssistantOnly) {
  const auto data = Load(Write("a.jsonl", R"({"messages": [{"role": "user", "content": "q"},
 {"role": "assistant", "content": "x"}]})"
                                          "\n"));
  ASSERT_FALSE(data.ok());  // an object must stand on one line
  const auto good = Load(Write("b.jsonl", R"({"messages": [{"role": "user", "content": "q"}, )"
                                          R"({"role": "assistant", "content": "x"}, )"
                                          R"({"role": "user", "content": "r"}, )"
                                          R"({"role": "assistant", "content": "y"}]})"));
  ASSERT_TRUE(good.ok()) << good.status();
  EXPECT_TRUE(good->messages);
  std::vector<int32_t> tokens = All(good->train);
  const std::vector<float> weights = Weights(good->train);
  EXPECT_EQ(tokens.back(), engine::kEndOfDocument);
  EXPECT_EQ(weights.back(), 1);
  tokens.pop_back();
  EXPECT_EQ(tokenizer_->Decode(tokens), "User: q\n\nAssistant: x\n\nUser: r\n\nAssistant: y\n\n");
  std::string learnt;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (weights[i] > 0) learnt += std::string(tokenizer_->Bytes(tokens[i]));
  }
  EXPECT_EQ(learnt, " x\n\nUser y\n\n");  // what the assistant writes until its stop
}

TEST_F(DatasetTest, JsonLinesErrorsNameTheLine) {
  for (const char* bad : {"nonsense", "[1]", "{\"txt\": 1}", "{\"messages\": 3}",
                          "{\"messages\": [{\"role\": \"assistant\", \"content\": \"x\"}]}"}) {
    const auto data = Load(Write("bad.jsonl", std::string("{\"text\": \"ok\"}\n\n") + bad));
    ASSERT_FALSE(data.ok()) << bad;
    EXPECT_THAT(std::string(data.status().message()), HasSubstr("bad.jsonl:3: ")) << bad;
  }
}

TEST_F(DatasetTest, TheSplitPrefersTheEndOfADocument) {
  std::vector<int32_t> tokens(1000, 5);
  const TokenStream near(tokens, {}, {905, 1000});
  EXPECT_EQ(SplitForValidation(near, 0.1).first.size(), 905);
  const TokenStream far(tokens, {}, {500, 1000});
  const auto [train, validation] = SplitForValidation(far, 0.1);
  EXPECT_EQ(train.size(), 899);
  EXPECT_EQ(validation.size(), 101);
}

TEST_F(DatasetTest, BinidxRoundTrip) {
  std::vector<int32_t> tokens = {1, 65535, 7, 0, 9, 0};
  ASSERT_TRUE(WriteBinidx(folder_ + "/d", TokenStream(tokens, {}, {4, 6})).ok());
  for (const char* name : {"/d", "/d.bin", "/d.idx"}) {
    const auto read = ReadBinidx(folder_ + name);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(All(*read), tokens);
    EXPECT_THAT(read->DocumentEnds(), ElementsAre(4, 6));
  }
  EXPECT_EQ(std::filesystem::file_size(folder_ + "/d.bin"), 12u);
  tokens[1] = 70000;  // needs 32 bits
  ASSERT_TRUE(WriteBinidx(folder_ + "/w", TokenStream(tokens, {}, {4, 6})).ok());
  EXPECT_EQ(All(*ReadBinidx(folder_ + "/w")), tokens);
}

TEST_F(DatasetTest, DamagedBinidxIsRefused) {
  ASSERT_TRUE(WriteBinidx(folder_ + "/d", TokenStream({1, 2, 0}, {}, {3})).ok());
  const std::string index = *base::ReadFile(folder_ + "/d.idx");
  for (size_t cut = 0; cut < index.size(); ++cut) {
    Write("c.idx", index.substr(0, cut));
    EXPECT_FALSE(ReadBinidx(folder_ + "/c").ok()) << cut;
  }
  for (size_t at :
       {size_t{0}, size_t{9}, size_t{17}, size_t{18}, size_t{26}, size_t{34}, size_t{38}}) {
    std::string damaged = index;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x7f);
    Write("d.idx", damaged);
    EXPECT_FALSE(ReadBinidx(folder_ + "/d").ok()) << at;
  }
  Write("d.idx", index);
  Write("d.bin", "\1");
  EXPECT_FALSE(ReadBinidx(folder_ + "/d").ok());
}

TEST_F(DatasetTest, TokensBeyondTheTokenizerAreRefused) {
  ASSERT_TRUE(WriteBinidx(folder_ + "/d", TokenStream({1, 400, 0}, {}, {3})).ok());
  const auto data = Load(folder_ + "/d");
  ASSERT_FALSE(data.ok());
  EXPECT_THAT(std::string(data.status().message()), HasSubstr("400"));
}

}  // namespace
}  // namespace skein::trainer
