// The machine that reads data.pkl, against pickles that no torch.save writes.

#include "engine/checkpoint/pickle_reader.h"

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

const char kStart[] = "\x80\x02";

TEST(Pickle, ReadsATensor) {
  const std::string pickle =
      Dict({{"w", Tensor(Storage("7", 12, "BFloat16Storage"), 3, {2, 3}, {3, 1})}});
  const auto tensors = ReadPickledStateDict(pickle);
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 1);
  const PickledTensor& w = (*tensors)[0];
  EXPECT_EQ(w.name, "w");
  EXPECT_EQ(w.storage_type, "BFloat16Storage");
  EXPECT_EQ(w.storage_key, "7");
  EXPECT_EQ(w.storage_elements, 12);
  EXPECT_EQ(w.offset, 3);
  EXPECT_THAT(w.shape, ElementsAre(2, 3));
  EXPECT_THAT(w.strides, ElementsAre(3, 1));
}

TEST(Pickle, ReadsEveryWidthOfNumbers) {
  const auto offset = [](const std::string& number) {
    const std::string tensor =
        Global("torch._utils", "_rebuild_tensor_v2") + "(" + Storage("0", 1) + number + "))\x89}tR";
    const std::string pickle = Dict({{"w", tensor}});
    const auto tensors = ReadPickledStateDict(pickle);
    EXPECT_TRUE(tensors.ok()) << tensors.status();
    return tensors.ok() ? (*tensors)[0].offset : -99;
  };
  EXPECT_EQ(offset("K\xff"), 255);
  EXPECT_EQ(offset("M\xff\xff"), 65535);
  EXPECT_EQ(offset("J\xff\xff\xff\x7f"), 2147483647);
  EXPECT_EQ(offset("J\xff\xff\xff\xff"), -1);
  EXPECT_EQ(offset(std::string("\x8a\x00", 2)), 0);
  EXPECT_EQ(offset("\x8a\x01\xff"), -1);
  EXPECT_EQ(offset(std::string("\x8a\x02\xff\x00", 4)), 255);
  EXPECT_EQ(offset(std::string("\x8a\x05\x00\x00\x00\x00\x01", 7)), int64_t{1} << 32);
  EXPECT_EQ(offset(Int(INT64_MIN)), INT64_MIN);
}

TEST(Pickle, AcceptsWhatPythonWritesAroundTensors) {
  const std::string tensor = Tensor(Storage("0", 1), 0, {1}, {1});
  const std::string parameter =
      Global("torch._utils", "_rebuild_parameter") + "(" + tensor + "\x88}tR";
  for (const std::string& pickle : {
           kStart + Global("builtins", "dict") + ")R" + Str("w") + tensor + "s.",
           kStart + Global("__builtin__", "dict") + ")R" + Str("w") + tensor + "s.",
           kStart + std::string("}") + Str("w") + parameter + "s.",
           // An OrderedDict with attributes, whose values are plain data of any kind.
           kStart + Global("collections", "OrderedDict") + ")R(" + Str("w") + tensor + "u}(" +
               Str("_metadata") + "](NK\x01" + Str("x") + "\x88\x89" +
               std::string("G\0\0\0\0\0\0\0\0", 9) + "K\x02\x85" + "eub.",
       }) {
    const auto tensors = ReadPickledStateDict(pickle);
    ASSERT_TRUE(tensors.ok()) << tensors.status();
    EXPECT_EQ(tensors->size(), 1);
  }
}

TEST(Pickle, AllowsNoOtherName) {
  const std::pair<const char*, const char*> kNames[] = {
      {"os", "system"},
      {"posix", "system"},
      {"builtins", "eval"},
      {"builtins", "exec"},
      {"__builtin__", "eval"},
      {"builtins", "getattr"},
      {"subprocess", "Popen"},
      {"torch", "load"},
      {"torch.hub", "load"},
      {"torch._utils", "x"},
      {"collections", "Counter"},
      {"functools", "partial"},
      {"torch.jit", "_Storage"},
      {"", ""},
      {"torch", "Storage.__reduce__"},
  };
  for (const auto& [module, name] : kNames) {
    const std::string call = "(" + Str("touch x") + "tR.";
    EXPECT_THAT(Refusal(ReadPickledStateDict(kStart + Global(module, name) + call)),
                HasSubstr("does not belong in a file of weights"))
        << module << "." << name;
    // The same name from the stack, as protocol 4 has it.
    EXPECT_THAT(Refusal(ReadPickledStateDict("\x80\x04" + Str(module) + Str(name) + "\x93" + call)),
                HasSubstr("does not belong in a file of weights"))
        << module << "." << name;
  }
}

// Names that are allowed cannot be used for anything but what they are for.
TEST(Pickle, AllowsNoOtherCall) {
  const std::string storage = Storage("0", 1), tensor = Tensor(storage, 0, {1}, {1});
  const std::string rebuild = Global("torch._utils", "_rebuild_tensor_v2");
  const std::string parameter = Global("torch._utils", "_rebuild_parameter");
  const std::string ordered = Global("collections", "OrderedDict");
  const struct {
    const char* what;
    std::string body;
  } kTable[] = {
      {"calls a string", Str("os.system") + "(" + Str("ls") + "tR."},
      {"calls a storage type", Global("torch", "FloatStorage") + ")R."},
      {"calls with a dict", ordered + "}R."},
      {"dict of arguments", ordered + "(](" + Str("a") + "K\x01" + "\x86" + "aetR."},
      {"tensor of nothing", rebuild + ")R."},
      {"tensor of a string", rebuild + "(" + Str("x") + "K\x00))\x89}tR."},
      {"tensor with a float offset",
       rebuild + "(" + storage + std::string("G\0\0\0\0\0\0\0\0", 9) + "))\x89}tR."},
      {"tensor with a list for a shape", rebuild + "(" + storage + "K\x00])\x89}tR."},
      {"tensor with names for sizes", rebuild + "(" + storage + "K\x00(" + Str("x") + "t)\x89}tR."},
      {"tensor with eight arguments", rebuild + "(" + storage + "K\x00))\x89}NNtR."},
      {"parameter of a storage", parameter + "(" + storage + "\x88}tR."},
      {"parameter of two", parameter + "(" + tensor + "\x88tR."},
      {"state for a tuple", ")}b."},
      {"state for an int", "K\x01}b."},
      {"state that is no dict",
       "}K\x01"
       "b."},
      {"storage id is a string", Str("0") + "Q."},
      {"storage id of another kind",
       "(" + Str("module") + Global("torch", "FloatStorage") + Str("0") + Str("cpu") + "K\x01tQ."},
      {"storage without a type", "(" + Str("storage") + "N" + Str("0") + Str("cpu") + "K\x01tQ."},
      {"storage with a number for a key",
       "(" + Str("storage") + Global("torch", "FloatStorage") + "K\x00" + Str("cpu") + "K\x01tQ."},
      {"storage with four parts",
       "(" + Str("storage") + Global("torch", "FloatStorage") + Str("0") + Str("cpu") + "tQ."},
      {"global of numbers", "K\x01K\x02\x93."},
  };
  for (const auto& row : kTable) {
    EXPECT_THAT(Refusal(ReadPickledStateDict(kStart + row.body)), HasSubstr("is damaged at byte"))
        << row.what;
  }
}

TEST(Pickle, AllowsNoOtherInstruction) {
  // Among them those that make objects or read numbers as text: INST, OBJ, NEWOBJ, EXT, DUP, POP.
  const std::string known("(.JKMGNQRUX]abcehjqrstu)}\x80\x85\x86\x87\x88\x89\x8a\x8c\x93\x94\x95");
  for (int opcode = 0; opcode < 256; ++opcode) {
    if (known.find(static_cast<char>(opcode)) != std::string::npos) continue;
    const std::string pickle =
        kStart + std::string("}") + static_cast<char>(opcode) + "posix\nsystem\n.";
    EXPECT_THAT(Refusal(ReadPickledStateDict(pickle)), HasSubstr("refusing to go on")) << opcode;
  }
}

TEST(Pickle, RefusesBrokenStacks) {
  for (const std::string& body : {
           std::string(""),
           std::string("."),
           std::string("}"),
           std::string("}}."),
           std::string("}(."),
           std::string("t."),
           std::string("}u."),
           std::string("}(K\x01u."),
           std::string("s."),
           std::string("}s."),
           std::string("}K\x01s."),
           std::string("R."),
           std::string("}R."),
           std::string("b."),
           std::string("}b."),
           std::string("Q."),
           std::string("\x85."),
           std::string("}\x86."),
           std::string("\x93."),
           std::string("a."),
           std::string("}K\x01"
                       "a."),
           std::string("](K\x01u."),
           std::string("q\x01."),
           std::string("\x94."),
           std::string("h\x01."),
           std::string("}j\x01\x01\x01\x01."),
           // A mark guards what is below it.
           std::string("}(\x85."),
           std::string("}(q\x01."),
           std::string("}(b."),
           std::string("](a."),
           std::string("}.x"),
           std::string("\x80\x01}."),
           std::string("\x80\x06}."),
           std::string("\x8a\x09\x01\x01\x01\x01\x01\x01\x01\x01\x01."),
           std::string("cposix"),
           std::string("cposix\nsystem"),
           "c" + std::string(1000, 'a') + "\n",
           std::string("X\xff\xff\xff\xff."),
           std::string("\x8c\xff"
                       "abc."),
           std::string("U\xff"
                       "abc."),
           std::string("\x95\x01"),
           "}" + std::string(65, '(') + ".",
       }) {
    EXPECT_THAT(Refusal(ReadPickledStateDict(kStart + body)), HasSubstr("is damaged at byte"))
        << absl::CHexEscape(body);
  }
}

TEST(Pickle, BoundsMemory) {
  // Four million values, then one more.
  std::string many = kStart;
  for (int i = 0; i < 5; ++i) {
    many += "(";
    many += std::string(999'000, 'N') + "t";
  }
  EXPECT_THAT(Refusal(ReadPickledStateDict(many + ".")), HasSubstr("too many values"));
  EXPECT_THAT(Refusal(ReadPickledStateDict(kStart + std::string(2'000'000, ')') + ".")),
              HasSubstr("too many values"));
  // The same value from the memo, again and again.
  std::string memo = kStart + std::string("}q\x01");
  for (int i = 0; i < 1'000'000; ++i) memo += "h\x01";
  EXPECT_THAT(Refusal(ReadPickledStateDict(memo + ".")), HasSubstr("too many values"));
}

// A dict that holds itself, and a tuple nested a hundred thousand times: nothing follows them down.
TEST(Pickle, SurvivesRecursion) {
  EXPECT_THAT(Refusal(ReadPickledStateDict(kStart + std::string("}q\x01") + Str("w") + "h\x01s.")),
              HasSubstr("'w' of the .pth is a dict"));
  const std::string deep = ")" + std::string(100'000, '\x85');
  EXPECT_THAT(Refusal(ReadPickledStateDict(Dict({{"w", deep}}))), HasSubstr("is a tuple"));
}

// A large dict under very many names must not be searched each time.
TEST(Pickle, RefusesManyNestedDictsInTime) {
  std::string pickle = kStart + std::string("}(") + Str("big") + "}q\x01(";
  for (int i = 0; i < 400'000; ++i) pickle += "NN";
  pickle += "u";
  for (int i = 0; i < 20'000; ++i) pickle += Str(absl::StrCat("w", i)) + "h\x01";
  pickle += "u.";
  EXPECT_THAT(Refusal(ReadPickledStateDict(pickle)), HasSubstr("'big' of the .pth is a dict"));
}

TEST(Pickle, RefusesEveryTruncation) {
  const std::string pickle = Dict({{"w", Tensor(Storage("0", 12), 0, {3, 4}, {4, 1})}});
  for (size_t size = 0; size < pickle.size(); ++size) {
    EXPECT_FALSE(ReadPickledStateDict(pickle.substr(0, size)).ok()) << size;
  }
}

}  // namespace
}  // namespace skein::engine
