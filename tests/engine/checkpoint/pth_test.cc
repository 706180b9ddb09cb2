#include <memory>
#include <string>

#include "tests/engine/checkpoint/test_files.h"

namespace skein::engine {
namespace {

using pickle::Dict;
using pickle::Global;
using pickle::Int;
using pickle::Storage;
using pickle::Str;
using pickle::Tensor;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<float> Ramp(int n) {
  std::vector<float> ramp;
  for (int i = 0; i < n; ++i) ramp.push_back(i / 4.0f - 1);
  return ramp;
}

TEST(Pth, ReadsStateDictsOfEveryWriting) {
  for (const char* name :
       {"module.pth", "protocol4.pth", "no_crc.pth", "rezipped.pth", "zip64.pth"}) {
    const std::string file = Golden(name);
    const auto parsed = ParsePth(file);
    ASSERT_TRUE(parsed.ok()) << name << ": " << parsed.status();
    ASSERT_EQ((*parsed)->tensors().size(), 4) << name;
    EXPECT_EQ((*parsed)->tensors()[0].name, "first.weight");
    EXPECT_THAT((*parsed)->tensors()[0].shape, ElementsAre(4, 3));
    EXPECT_EQ(Values((*parsed)->tensors()[0]), Ramp(12));
    EXPECT_EQ(Values(*(*parsed)->Find("second.bias")), Ramp(4));
    EXPECT_TRUE((*parsed)->metadata().empty());
  }
}

TEST(Pth, ReadsViewsAndSharedStorages) {
  const std::string file = Golden("strided.pth");
  const auto parsed = ParsePth(file);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const auto get = [&](const char* name) -> const TensorView& { return *(*parsed)->Find(name); };
  EXPECT_EQ(Values(get("plain")), Ramp(24));
  EXPECT_EQ(get("shared").data, get("transposed").data);
  EXPECT_THAT(get("transposed").strides, ElementsAre(1, 4));
  EXPECT_FALSE(get("transposed").contiguous());
  const std::vector<float> transposed = Values(get("transposed")), base = Ramp(24);
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 6; ++j) EXPECT_EQ(transposed[i * 6 + j], base[j * 4 + i]);
  }
  EXPECT_THAT(Values(get("slice")),
              ElementsAre(base[9], base[10], base[13], base[14], base[17], base[18]));
  EXPECT_THAT(get("every_other").strides, ElementsAre(2));
  EXPECT_EQ(Values(get("every_other"))[11], base[23]);
  EXPECT_THAT(Values(get("scalar")), ElementsAre(2.5f));
  EXPECT_EQ(get("empty").elements(), 0);
  EXPECT_EQ(get("half").dtype, DType::kF16);
  EXPECT_EQ(Values(get("half")), Ramp(5));
  EXPECT_EQ(get("bfloat").dtype, DType::kBF16);
  EXPECT_EQ(Values(get("bfloat")), Ramp(5));
  EXPECT_EQ(Values(get("parameter")), Ramp(3));
  // CopyRaw gives the same bytes as a plain tensor has.
  std::vector<float> raw(6);
  get("slice").CopyRaw(raw.data());
  EXPECT_EQ(raw, Values(get("slice")));
}

TEST(Pth, RefusesWhatItCannotUse) {
  const struct {
    const char* file;
    absl::StatusCode code;
    const char* message;
  } kTable[] = {
      {"compressed.pth", absl::StatusCode::kUnimplemented, "is compressed"},
      {"big_endian.pth", absl::StatusCode::kUnimplemented, "big-endian"},
      {"torchscript.pth", absl::StatusCode::kUnimplemented, "TorchScript"},
      {"int8.pth", absl::StatusCode::kUnimplemented, "torch.CharStorage"},
      {"double.pth", absl::StatusCode::kUnimplemented, "torch.DoubleStorage"},
      {"nested.pth", absl::StatusCode::kInvalidArgument, "nested under 'state_dict'"},
      {"epoch.pth", absl::StatusCode::kInvalidArgument, "nested under 'state_dict'"},
      {"converted.pth", absl::StatusCode::kInvalidArgument, "converted for one strategy"},
      {"list.pth", absl::StatusCode::kInvalidArgument, "holds a list, not a dict"},
      {"expanded.pth", absl::StatusCode::kInvalidArgument, "its elements overlap"},
      {"whole_module.pth", absl::StatusCode::kInvalidArgument, "'__main__.Net'"},
      {"evil_system.pth", absl::StatusCode::kInvalidArgument, "'posix.system'"},
      {"evil_eval.pth", absl::StatusCode::kInvalidArgument, "'__builtin__.eval'"},
  };
  for (const auto& row : kTable) {
    EXPECT_THAT(Refusal(ParsePth(Golden(row.file)), row.code), HasSubstr(row.message)) << row.file;
  }
}

// Every proper prefix is refused. Bytes of the weights themselves carry no checksum, but the
// directory is at the end, so nothing that was cut off passes.
TEST(Pth, RefusesEveryTruncation) {
  for (const char* name : {"module.pth", "zip64.pth", "strided.pth", "no_crc.pth"}) {
    const std::string file = Golden(name);
    for (size_t size = 0; size < file.size(); ++size) {
      const std::unique_ptr<char[]> copy(new char[size + !size]);
      memcpy(copy.get(), file.data(), size);
      const auto parsed = ParsePth({copy.get(), size});
      ASSERT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << name << " " << size;
    }
  }
}

TEST(Pth, SurvivesEveryChangedByte) {
  for (const char* name : {"no_crc.pth", "zip64.pth"}) {
    const std::string file = Golden(name);
    for (size_t i = 0; i < file.size(); ++i) {
      for (const uint8_t bits : {0x01, 0x02, 0x40, 0x80, 0xff}) {
        std::string damaged = file;
        damaged[i] ^= bits;
        const auto parsed = ParsePth(damaged);
        if (!parsed.ok()) continue;
        for (const TensorView& tensor : (*parsed)->tensors()) Values(tensor);
      }
    }
  }
}

TEST(Pth, ChecksTheSumOfThePickle) {
  std::string file = Golden("module.pth");
  const size_t name = file.find("first.weight");
  ASSERT_NE(name, std::string::npos);
  file[name] = 'F';
  EXPECT_THAT(Refusal(ParsePth(file)), HasSubstr("checksum is wrong"));
}

TEST(Pth, ReadsWhatTheTestsBuild) {
  const std::string file = PthFile(Dict({{"w", Tensor(Storage("0", 12), 2, {3, 2}, {4, 1})}}));
  const auto parsed = ParsePth(file);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_THAT(Values((*parsed)->tensors()[0]), ElementsAre(2, 3, 6, 7, 10, 11));
}

TEST(Pth, RefusesTensorsThatLeaveTheirStorage) {
  constexpr int64_t kHuge = int64_t{1} << 62;
  const std::string storage = Storage("0", 12);
  const struct {
    const char* what;
    std::string tensor;
    const char* message;
  } kTable[] = {
      {"one too many", Tensor(storage, 0, {13}, {1}), "reaches past the end"},
      {"offset at the end", Tensor(storage, 12, {1}, {1}), "reaches past the end"},
      {"offset too far for an empty one", Tensor(storage, 13, {0}, {1}), "reaches past the end"},
      {"negative offset", Tensor(storage, -1, {2}, {1}), "the offset is negative"},
      {"huge offset", Tensor(storage, INT64_MAX, {2}, {1}), "reaches past the end"},
      {"negative stride", Tensor(storage, 11, {12}, {-1}), "a stride is negative"},
      {"huge stride", Tensor(storage, 0, {3}, {kHuge}), "reaches past the end"},
      {"overflowing stride", Tensor(storage, 0, {5, 5}, {kHuge, kHuge}), "reaches past the end"},
      {"negative size", Tensor(storage, 0, {-1}, {1}), "negative size"},
      {"overflowing size", Tensor(storage, 0, {kHuge, 8}, {0, 0}), "impossible shape"},
      {"zero hides overflow", Tensor(storage, 0, {0, kHuge, 8}, {0, 0, 0}), "impossible shape"},
      {"all the same element", Tensor(storage, 0, {1000, 1000}, {0, 0}), "elements overlap"},
      {"fewer strides", Tensor(storage, 0, {2, 2}, {1}), "shape and strides disagree"},
      {"more strides", Tensor(storage, 0, {2}, {1, 1}), "shape and strides disagree"},
      {"nine dimensions",
       Tensor(storage, 0, {1, 1, 1, 1, 1, 1, 1, 1, 1}, {1, 1, 1, 1, 1, 1, 1, 1, 1}),
       "too many dimensions"},
      {"storage too long", Tensor(Storage("0", 13), 0, {1}, {1}), "should have 13 elements"},
      {"storage too short", Tensor(Storage("0", 11), 0, {1}, {1}), "should have 11 elements"},
      {"storage negative", Tensor(Storage("0", -12), 0, {1}, {1}), "should have -12 elements"},
      {"storage huge", Tensor(Storage("0", kHuge + 12), 0, {1}, {1}), "has 48 bytes"},
      {"storage of another type", Tensor(Storage("0", 12, "HalfStorage"), 0, {1}, {1}),
       "has 48 bytes"},
      {"storage missing", Tensor(Storage("1", 12), 0, {1}, {1}),
       "storage '1' of tensor 'w' is missing"},
      {"storage elsewhere", Tensor(Storage("../data.pkl", 12), 0, {1}, {1}), "is missing"},
  };
  for (const auto& row : kTable) {
    EXPECT_THAT(Refusal(ParsePth(PthFile(Dict({{"w", row.tensor}})))), HasSubstr(row.message))
        << row.what;
  }
  const std::string halves = Tensor(Storage("0", 24, "HalfStorage"), 0, {1}, {1});
  const std::string floats = Tensor(storage, 0, {1}, {1});
  EXPECT_THAT(Refusal(ParsePth(PthFile(Dict({{"a", floats}, {"b", halves}})))),
              HasSubstr("used with two types"));
}

TEST(Pth, RefusesASmallFileThatStandsForMuch) {
  std::vector<std::pair<std::string, std::string>> items;
  // 100,000 names for the same kilobytes.
  std::string zeros(400'000, '\0');
  const std::string tensor = Tensor(Storage("0", 100'000), 0, {100'000}, {1});
  for (int i = 0; i < 100; ++i) items.emplace_back(absl::StrCat("w", i), tensor);
  const std::string file = ZipFile({{"m/data.pkl", Dict(items)}, {"m/data/0", zeros}});
  EXPECT_THAT(Refusal(ParsePth(file)), HasSubstr("share storages so often"));
}

TEST(Pth, RefusesOddEntries) {
  const std::string tensor = Tensor(Storage("0", 12), 0, {1}, {1});
  const struct {
    const char* what;
    std::string pickle, message;
  } kTable[] = {
      {"name twice", Dict({{"w", tensor}, {"w", tensor}}), "'w' twice"},
      {"number", Dict({{"w", Int(1)}}), "'w' of the .pth is an int"},
      {"text", Dict({{"w", Str("x")}}), "is a str"},
      {"none", Dict({{"w", "N"}}), "is None"},
      {"a bare storage", Dict({{"w", Storage("0", 12)}}), "is something else"},
      {"a type", Dict({{"w", Global("torch", "FloatStorage")}}), "is something else"},
      {"rescaled", Dict({{"w", tensor}, {"_rescale_layer", Int(6)}}), "converted for one strategy"},
      {"number for a name", "\x80\x02}" + Int(1) + tensor + "s.", "an int for the name"},
  };
  for (const auto& row : kTable) {
    EXPECT_THAT(Refusal(ParsePth(PthFile(row.pickle))), HasSubstr(row.message)) << row.what;
  }
}

TEST(Pth, RefusesOddArchives) {
  const std::string pickle = Dict({});
  EXPECT_TRUE(ParsePth(ZipFile({{"m/data.pkl", pickle}})).ok());
  EXPECT_THAT(Refusal(ParsePth(ZipFile({}))), HasSubstr("without data.pkl"));
  EXPECT_THAT(Refusal(ParsePth(ZipFile({{"data.pkl", pickle}}))), HasSubstr("without data.pkl"));
  EXPECT_THAT(Refusal(ParsePth(ZipFile({{"a/data.pkl", pickle}, {"b/data.pkl", pickle}}))),
              HasSubstr("two files data.pkl"));
  EXPECT_THAT(Refusal(ParsePth(ZipFile({{"m/data.pkl", pickle}, {"m/byteorder", "middle"}}))),
              HasSubstr("unknown byte order 'middle'"));
  TestEntry wrong{"m/data.pkl", pickle};
  wrong.wrong_crc = true;
  EXPECT_THAT(Refusal(ParsePth(ZipFile({wrong}))), HasSubstr("checksum"));
}

}  // namespace
}  // namespace skein::engine
