// Files as a whole: opening, writing, converting.

#include "engine/checkpoint.h"

#include <sys/resource.h>

#include <csignal>
#include <filesystem>
#include <string>

#include "engine/checkpoint/convert.h"
#include "engine/checkpoint/crc32.h"
#include "tests/engine/checkpoint/test_files.h"
#include "tests/engine/random_model.h"

namespace skein::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const char kData[] = "tests/engine/checkpoint/data/";

std::unique_ptr<Checkpoint> Open(const std::string& path) {
  auto checkpoint = Checkpoint::Open(path);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return checkpoint.ok() ? *std::move(checkpoint) : nullptr;
}

void ExpectSame(const Checkpoint& got, const Checkpoint& want) {
  ASSERT_EQ(got.tensors().size(), want.tensors().size());
  for (const TensorView& tensor : want.tensors()) {
    const TensorView* other = got.Find(tensor.name);
    ASSERT_NE(other, nullptr) << tensor.name;
    EXPECT_EQ(other->dtype, tensor.dtype) << tensor.name;
    EXPECT_EQ(other->shape, tensor.shape) << tensor.name;
    EXPECT_EQ(Values(*other), Values(tensor)) << tensor.name;
  }
  EXPECT_EQ(got.Fingerprint(), want.Fingerprint());
}

TEST(Checkpoint, RecognisesTheSameModelInBothKindsOfFile) {
  const auto pth = Open(std::string(kData) + "rwkv7_bf16.pth");
  const auto safetensors = Open(std::string(kData) + "rwkv7_bf16.safetensors");
  ExpectSame(*pth, *safetensors);
  for (const Checkpoint* checkpoint : {pth.get(), safetensors.get()}) {
    const auto config = checkpoint->Config();
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->L, 2);
    EXPECT_EQ(config->V, 24);
    EXPECT_EQ(config->rank_g, 5);
    EXPECT_EQ(config->parameters, 6352);
  }
}

TEST(Checkpoint, DecidesByContentsNotByName) {
  TestFolder folder;
  std::filesystem::copy(std::string(kData) + "rwkv7_bf16.pth", folder / "model.safetensors");
  std::filesystem::copy(std::string(kData) + "rwkv7_bf16.safetensors", folder / "model.pth");
  ExpectSame(*Open(folder / "model.safetensors"), *Open(folder / "model.pth"));
}

TEST(Checkpoint, NamesOtherFiles) {
  TestFolder folder;
  const std::string path = folder / "model.pth";
  const auto code = absl::StatusCode::kInvalidArgument;
  const auto todo = absl::StatusCode::kUnimplemented;
  const struct {
    std::string contents;
    absl::StatusCode code;
    const char* message;
  } kTable[] = {
      {"", code, "empty"},
      {"x", code, "neither a .safetensors nor a .pth"},
      {"hello world, this is a text file", code, "starts with the bytes 'hello wo'"},
      {std::string(100, '\0'), code, "neither"},
      {"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", code, "git lfs pull"},
      {"<!DOCTYPE html><html>404", code, "web page"},
      {"GGUF\x03" + std::string(40, '\0'), todo, "GGUF"},
      {"\x1f\x8b\x08" + std::string(40, '\0'), todo, "unpack it"},
      {Golden("legacy.pth"), todo, "save it again with torch.save"},
      {Golden("pickle_only.pth"), todo, "older than 1.6"},
      {"PK", code, "cut off"},
  };
  for (const auto& row : kTable) {
    ASSERT_TRUE(base::WriteFileAtomically(path, row.contents).ok());
    const std::string message = Refusal(Checkpoint::Open(path), row.code);
    EXPECT_THAT(message, HasSubstr(row.message));
    EXPECT_THAT(message, HasSubstr(path));
  }
  EXPECT_EQ(Checkpoint::Open(folder / "absent").status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(Checkpoint::Open(folder / "").ok());
}

TEST(Checkpoint, WritersRoundTrip) {
  TestFolder folder;
  const std::vector<float> f32 = {1.5f, -2, 3e38f, 0, -0.0f, 7};
  const std::vector<uint16_t> narrow = {0x3f80, 0x8000, 0x7f7f};
  const std::vector<TensorToWrite> tensors = {
      {"half", DType::kF16, {3}, narrow.data()}, {"brain", DType::kBF16, {1, 1, 3}, narrow.data()},
      {"wide", DType::kF32, {2, 3}, f32.data()}, {"empty", DType::kF32, {0, 5}, nullptr},
      {"scalar", DType::kF32, {}, f32.data()},   {"π \"quoted\" \n", DType::kF32, {1}, f32.data()},
  };
  const std::map<std::string, std::string> metadata = {{"b", "2"}, {"a", "π \"\\\n\x01"}};
  ASSERT_TRUE(WriteSafetensors(folder / "a.safetensors", tensors, metadata).ok());
  ASSERT_TRUE(WritePth(folder / "a.pth", tensors).ok());
  for (const char* name : {"a.safetensors", "a.pth"}) {
    const auto checkpoint = Open(folder / name);
    ASSERT_EQ(checkpoint->tensors().size(), tensors.size());
    for (const TensorToWrite& tensor : tensors) {
      const TensorView* view = checkpoint->Find(tensor.name);
      ASSERT_NE(view, nullptr) << tensor.name;
      EXPECT_EQ(view->dtype, tensor.dtype);
      EXPECT_EQ(view->shape, tensor.shape);
      EXPECT_TRUE(view->contiguous());
      std::vector<uint8_t> raw(view->elements() * SizeOf(view->dtype));
      view->CopyRaw(raw.data());
      EXPECT_TRUE(raw.empty() || memcmp(raw.data(), tensor.data, raw.size()) == 0) << tensor.name;
      EXPECT_EQ(reinterpret_cast<uintptr_t>(view->data) % SizeOf(view->dtype), 0) << "aligned";
    }
  }
  EXPECT_EQ(Open(folder / "a.safetensors")->metadata(), metadata);
  // Equal weights give equal files.
  ASSERT_TRUE(WritePth(folder / "b.pth", tensors).ok());
  EXPECT_EQ(*base::ReadFile(folder / "a.pth"), *base::ReadFile(folder / "b.pth"));
}

TEST(Checkpoint, WritersRefuseWhatNobodyCouldRead) {
  TestFolder folder;
  const float one = 1;
  const auto tensor = [&](std::string name, std::vector<int64_t> shape) {
    return TensorToWrite{std::move(name), DType::kF32, std::move(shape), &one};
  };
  const struct {
    std::vector<TensorToWrite> tensors;
    const char* message;
  } kTable[] = {
      {{tensor("", {1})}, "cannot be called ''"},
      {{tensor("__metadata__", {1})}, "cannot be called '__metadata__'"},
      {{tensor("\xff", {1})}, "cannot be called"},
      {{tensor("a", {1}), tensor("a", {1})}, "two tensors are called 'a'"},
      {{tensor("a", {-1})}, "negative size"},
      {{tensor("a", {1, 1, 1, 1, 1, 1, 1, 1, 1})}, "9 dimensions"},
  };
  for (const auto& row : kTable) {
    EXPECT_THAT(std::string(WriteSafetensors(folder / "x", row.tensors, {}).message()),
                HasSubstr(row.message));
    EXPECT_THAT(std::string(WritePth(folder / "x", row.tensors).message()), HasSubstr(row.message));
  }
  EXPECT_THAT(std::string(WriteSafetensors(folder / "x", {}, {{"a", "\xff"}}).message()),
              HasSubstr("UTF-8"));
  EXPECT_FALSE(std::filesystem::exists(folder / "x"));
  EXPECT_FALSE(WritePth(folder / "no/such/folder/x", {}).ok());
}

// A disk that is full (here: a limit on the length of files) leaves the old file and no rubbish.
TEST(Checkpoint, AFullDiskKeepsTheOldFile) {
  TestFolder folder;
  const std::vector<float> data(100'000, 1.5f);
  const std::vector<TensorToWrite> tensors = {{"w", DType::kF32, {100'000}, data.data()}};
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, SIG_IGN);
  for (const char* name : {"model.pth", "model.safetensors"}) {
    ASSERT_TRUE(base::WriteFileAtomically(folder / name, "old").ok());
    rlimit limit = before;
    limit.rlim_cur = 50'000;
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
    const absl::Status status = std::string(name) == "model.pth"
                                    ? WritePth(folder / name, tensors)
                                    : WriteSafetensors(folder / name, tensors, {});
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    EXPECT_EQ(*base::ReadFile(folder / name), "old");
  }
  size_t files = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder / ""))
    ++files;
  EXPECT_EQ(files, 2);
}

TEST(Checkpoint, FingerprintTellsModelsApart) {
  const float data[] = {1, 2, 3, 4};
  const auto print = [&](std::vector<TensorToWrite> tensors) {
    TestFolder folder;
    EXPECT_TRUE(WriteSafetensors(folder / "a", tensors, {}).ok());
    return Open(folder / "a")->Fingerprint();
  };
  const uint64_t base = print({{"a", DType::kF32, {2}, data}, {"b", DType::kF32, {2}, data + 2}});
  EXPECT_EQ(base, print({{"b", DType::kF32, {2}, data + 2}, {"a", DType::kF32, {2}, data}}));
  EXPECT_NE(base, print({{"a", DType::kF32, {2}, data}, {"c", DType::kF32, {2}, data + 2}}));
  EXPECT_NE(base, print({{"a", DType::kF32, {2}, data}, {"b", DType::kF32, {1, 2}, data + 2}}));
  EXPECT_NE(base, print({{"a", DType::kF32, {2}, data}, {"b", DType::kF32, {2}, data + 1}}));
  EXPECT_NE(base, print({{"a", DType::kF32, {2}, data}, {"b", DType::kBF16, {2}, data + 2}}));
  EXPECT_NE(base, print({{"a", DType::kF32, {2}, data}}));
}

TEST(Checkpoint, ConvertsBetweenKindsAndTypes) {
  TestFolder folder;
  const RandomModel model({});
  ASSERT_TRUE(model.Write(folder / "a.safetensors", {{"k", "v"}}).ok());
  const auto convert = [&](const std::string& in, const std::string& out,
                           std::optional<DType> dtype) {
    const absl::Status status = ConvertCheckpoint(folder / in, folder / out, dtype);
    EXPECT_TRUE(status.ok()) << status;
    return Open(folder / out);
  };
  const auto start = Open(folder / "a.safetensors");
  ExpectSame(*convert("a.safetensors", "a.pth", {}), *start);
  ExpectSame(*convert("a.pth", "b.safetensors", {}), *start);
  const auto narrow = convert("a.safetensors", "n.safetensors", DType::kBF16);
  EXPECT_EQ(narrow->metadata(), start->metadata());
  EXPECT_NE(narrow->Fingerprint(), start->Fingerprint());
  for (const TensorView& tensor : narrow->tensors()) {
    EXPECT_EQ(tensor.dtype, DType::kBF16);
    const std::vector<float> got = Values(tensor), want = Values(*start->Find(tensor.name));
    for (size_t i = 0; i < got.size(); ++i) ASSERT_EQ(got[i], BF16ToF32(F32ToBF16(want[i])));
  }
  // Widening is exact, so narrowing again changes nothing; in may be out.
  convert("n.safetensors", "w.pth", DType::kF32);
  ExpectSame(*convert("w.pth", "w.pth", DType::kBF16), *narrow);
  EXPECT_THAT(std::string(ConvertCheckpoint(folder / "a.pth", folder / "a.bin", {}).message()),
              HasSubstr("must end in .pth or .safetensors"));
  EXPECT_FALSE(ConvertCheckpoint(folder / "a.pth", folder / "c.pth", DType::kF16).ok());
  EXPECT_FALSE(ConvertCheckpoint(folder / "absent", folder / "c.pth", {}).ok());
}

TEST(Crc32, KnownValues) {
  EXPECT_EQ(Crc32("123456789", 9), 0xcbf43926u);
  EXPECT_EQ(Crc32("", 0), 0u);
  const std::string fox = "The quick brown fox jumps over the lazy dog";
  EXPECT_EQ(Crc32(fox.data(), fox.size()), 0x414fa339u);
  for (size_t cut = 0; cut <= fox.size(); ++cut) {
    EXPECT_EQ(Crc32(fox.data() + cut, fox.size() - cut, Crc32(fox.data(), cut)), 0x414fa339u);
  }
}

}  // namespace
}  // namespace skein::engine
