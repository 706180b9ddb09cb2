#include <memory>
#include <string>

#include "tests/engine/checkpoint/test_files.h"

namespace skein::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const char kTensor[] = R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})";

std::string Header(const std::string& name, const std::string& tensor) {
  return "{\"" + name + "\":" + tensor + "}";
}

TEST(Safetensors, ReadsWhatThePackageWrote) {
  const std::string file = Golden("mixed.safetensors");
  const auto parsed = ParseSafetensors(file);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const TensorView* w = (*parsed)->Find("w");
  ASSERT_NE(w, nullptr);
  EXPECT_THAT(w->shape, ElementsAre(2, 3));
  EXPECT_THAT(w->strides, ElementsAre(3, 1));
  EXPECT_THAT(Values(*w), ElementsAre(-1, -0.75f, -0.5f, -0.25f, 0, 0.25f));
  EXPECT_EQ((*parsed)->Find("h")->dtype, DType::kF16);
  EXPECT_THAT(Values(*(*parsed)->Find("h")), ElementsAre(-1, -0.75f, -0.5f, -0.25f, 0));
  EXPECT_THAT((*parsed)->Find("e")->shape, ElementsAre(0, 3));
  EXPECT_EQ((*parsed)->Find("e")->elements(), 0);
  EXPECT_TRUE((*parsed)->Find("s")->shape.empty());
  EXPECT_THAT(Values(*(*parsed)->Find("s")), ElementsAre(2.5f));
  EXPECT_EQ((*parsed)->Find("absent"), nullptr);
}

TEST(Safetensors, ReadsMetadata) {
  const std::string file = Golden("rwkv7_bf16.safetensors");
  const auto parsed = ParseSafetensors(file);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ((*parsed)->metadata().at(kMetaTokenizer), "bytes");
  EXPECT_EQ((*parsed)->metadata().at("note"), "π");
}

TEST(Safetensors, AcceptsMembersInAnyOrderAndPadding) {
  const std::string header =
      R"({ "b":{"data_offsets":[8,12],"shape":[2,1],"dtype":"BF16"},"__metadata__":{},"a":)" +
      std::string(kTensor) + "}   ";
  const std::string file = SafetensorsFile(header, std::string(12, '\0'));
  const auto parsed = ParseSafetensors(file);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ((*parsed)->tensors().size(), 2);
}

// Every proper prefix of a file is refused, and so is a byte too many.
TEST(Safetensors, RefusesEveryTruncation) {
  for (const char* name : {"mixed.safetensors", "rwkv7_bf16.safetensors"}) {
    const std::string file = Golden(name);
    const size_t step = file.size() > 1000 ? 7 : 1;
    for (size_t size = 0; size < file.size(); size += step) {
      // A copy of its own, so that the sanitizer sees a read past its end.
      const std::unique_ptr<char[]> copy(new char[size + !size]);
      memcpy(copy.get(), file.data(), size);
      const auto parsed = ParseSafetensors({copy.get(), size});
      EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << name << " " << size;
    }
    EXPECT_THAT(Refusal(ParseSafetensors(file + "x")), HasSubstr("1 bytes after its last tensor"));
  }
}

// Whatever one changed byte does, the result stays inside the file.
TEST(Safetensors, SurvivesEveryChangedByte) {
  const std::string file = Golden("mixed.safetensors");
  for (size_t i = 0; i < file.size(); ++i) {
    for (const uint8_t bits : {0x01, 0x02, 0x10, 0x80, 0xff}) {
      std::string damaged = file;
      damaged[i] ^= bits;
      const auto parsed = ParseSafetensors(damaged);
      if (!parsed.ok()) continue;
      for (const TensorView& tensor : (*parsed)->tensors()) Values(tensor);
    }
  }
}

struct BadHeader {
  const char* what;
  std::string header;
  std::string message;
};

TEST(Safetensors, RefusesBadHeaders) {
  const std::string w = "{\"w\":";
  const BadHeader kTable[] = {
      {"no JSON", "{\"w\"", "not valid JSON"},
      {"text after the end", Header("w", kTensor) + "x", "not valid JSON"},
      {"bad UTF-8", Header("\xff", kTensor), "not valid JSON"},
      {"not an object", "[1]", "a list where none belongs"},
      {"a number", "7", "a number where none belongs"},
      {"tensor is a list", w + "[1]}", "a list where none belongs"},
      {"tensor is null", w + "null}", "null"},
      {"unknown field", Header("w", R"({"dtype":"F32","shape":[2],"offset":[0,8]})"),
       "unknown field 'offset'"},
      {"missing field", Header("w", R"({"dtype":"F32","shape":[2]})"), "without dtype, shape or"},
      {"field twice", Header("w", R"({"dtype":"F32","dtype":"F32"})"), "'dtype' twice"},
      {"name twice", "{\"w\":" + std::string(kTensor) + ",\"w\":" + kTensor + "}", "'w' twice"},
      {"metadata twice", R"({"__metadata__":{},"__metadata__":{}})", "'__metadata__' twice"},
      {"metadata key twice", R"({"__metadata__":{"a":"1","a":"2"}})", "'a' twice"},
      {"metadata number", R"({"__metadata__":{"a":1}})", "a number where none belongs"},
      {"metadata nested", R"({"__metadata__":{"a":{}}})", "an object where none belongs"},
      {"negative size", Header("w", R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})"),
       "a negative number"},
      {"size 2^63",
       Header("w", R"({"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,8]})"),
       "negative size"},
      {"fraction", Header("w", R"({"dtype":"F32","shape":[2.0],"data_offsets":[0,8]})"),
       "no whole number"},
      {"size 1e30", Header("w", R"({"dtype":"F32","shape":[1e30],"data_offsets":[0,8]})"),
       "no whole number"},
      {"size over 64 bits",
       Header("w", R"({"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,8]})"),
       "no whole number"},
      {"product overflows",
       Header("w", R"({"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,8]})"),
       "impossible shape"},
      {"zero hides overflow",
       Header("w", R"({"dtype":"F32","shape":[0,4294967296,4294967296,4],"data_offsets":[0,0]})"),
       "impossible shape"},
      {"nine dimensions",
       Header("w", R"({"dtype":"F32","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,8]})"),
       "more than 8 dimensions"},
      {"three offsets", Header("w", R"({"dtype":"F32","shape":[2],"data_offsets":[0,8,9]})"),
       "more than two"},
      {"one offset", Header("w", R"({"dtype":"F32","shape":[2],"data_offsets":[8]})"),
       "damaged data_offsets"},
      {"backwards", Header("w", R"({"dtype":"F32","shape":[2],"data_offsets":[8,0]})"),
       "damaged data_offsets"},
      {"past the end", Header("w", R"({"dtype":"F32","shape":[4],"data_offsets":[0,16]})"),
       "cut off or damaged"},
      {"huge offsets",
       Header(
           "w",
           R"({"dtype":"F32","shape":[2],"data_offsets":[18446744073709551608,18446744073709551615]})"),
       "cut off or damaged"},
      {"wrong length", Header("w", R"({"dtype":"F32","shape":[1],"data_offsets":[0,8]})"),
       "needs 4 bytes but has 8"},
      {"hole", Header("w", R"({"dtype":"F32","shape":[1],"data_offsets":[4,8]})"), "leave a hole"},
      {"overlap",
       R"({"v":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
       "overlap"},
      {"no tensors", "{}", "8 bytes after its last tensor"},
  };
  for (const BadHeader& bad : kTable) {
    const std::string file = SafetensorsFile(bad.header, std::string(8, '\0'));
    EXPECT_THAT(Refusal(ParseSafetensors(file)), HasSubstr(bad.message)) << bad.what;
  }
}

TEST(Safetensors, RefusesDeepJsonWithoutBuildingIt) {
  const std::string deep(1'000'000, '[');
  EXPECT_THAT(Refusal(ParseSafetensors(SafetensorsFile("{\"w\":" + deep, ""))),
              HasSubstr("a list where none belongs"));
}

TEST(Safetensors, RefusesHugeHeaders) {
  std::string file;
  AppendLittleEndian<uint64_t>(~uint64_t{0}, &file);
  EXPECT_THAT(Refusal(ParseSafetensors(file + "{}")), HasSubstr("at most 100000000 are allowed"));
  file.clear();
  AppendLittleEndian<uint64_t>(1000, &file);
  EXPECT_THAT(Refusal(ParseSafetensors(file + "{}")), HasSubstr("it is cut off"));
}

TEST(Safetensors, NamesOtherTypes) {
  for (const char* type : {"F64", "I64", "I8", "U8", "BOOL", "F8_E4M3", "f32", ""}) {
    const std::string tensor =
        absl::StrCat(R"({"dtype":")", type, R"(","shape":[2],"data_offsets":[0,8]})");
    const auto message = Refusal(ParseSafetensors(SafetensorsFile(Header("w", tensor), "12345678")),
                                 absl::StatusCode::kUnimplemented);
    EXPECT_THAT(message, HasSubstr(absl::StrCat("type '", type, "'; supported are F32, BF16")));
  }
}

TEST(Safetensors, EscapesNamesInMessages) {
  const std::string tensor = R"({"dtype":"F64","shape":[1],"data_offsets":[0,8]})";
  const auto message =
      Refusal(ParseSafetensors(SafetensorsFile(
                  Header("\\u001b[31m" + std::string(500, 'a'), tensor), "12345678")),
              absl::StatusCode::kUnimplemented);
  EXPECT_THAT(message, HasSubstr("\\x1b[31m"));
  EXPECT_LT(message.size(), 300);
}

}  // namespace
}  // namespace skein::engine
