#include "engine/model_config.h"

#include <algorithm>
#include <functional>
#include <map>
#include <string>

#include "tests/engine/checkpoint/test_files.h"

namespace skein::engine {
namespace {

using ::testing::HasSubstr;
using Shapes = std::map<std::string, std::vector<int64_t>>;

struct Sizes {
  int64_t L = 2, C = 96, N = 32, V = 300, F = 384, w = 16, a = 24, v = 8, g = 40;
};

Shapes MakeRwkv7(const Sizes& s, bool flat = false, bool layer0_v = true) {
  Shapes shapes;
  const std::vector<int64_t> vector =
      flat ? std::vector<int64_t>{s.C} : std::vector<int64_t>{1, 1, s.C};
  const auto norm = [&](const std::string& name) {
    shapes[name + ".weight"] = shapes[name + ".bias"] = {s.C};
  };
  shapes["emb.weight"] = shapes["head.weight"] = {s.V, s.C};
  norm("ln_out");
  norm("blocks.0.ln0");
  for (int64_t i = 0; i < s.L; ++i) {
    const std::string block = "blocks." + std::to_string(i) + ".", att = block + "att.";
    norm(block + "ln1");
    norm(block + "ln2");
    norm(att + "ln_x");
    for (const char* name : {"x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "k_k", "k_a", "w0", "a0"}) {
      shapes[att + name] = vector;
    }
    for (const auto& [letter, rank] : {std::pair{'w', s.w}, {'a', s.a}, {'v', s.v}, {'g', s.g}}) {
      if (letter == 'v' && i == 0 && !layer0_v) continue;
      if (letter == 'v') shapes[att + "v0"] = vector;
      shapes[att + letter + "1"] = {s.C, rank};
      shapes[att + letter + "2"] = {rank, s.C};
    }
    shapes[att + "r_k"] = {s.C / s.N, s.N};
    for (const char* name : {"receptance", "key", "value", "output"}) {
      shapes[att + name + ".weight"] = {s.C, s.C};
    }
    shapes[block + "ffn.x_k"] = vector;
    shapes[block + "ffn.key.weight"] = {s.F, s.C};
    shapes[block + "ffn.value.weight"] = {s.C, s.F};
  }
  return shapes;
}

absl::StatusOr<ModelConfig> Recognize(const Shapes& shapes) {
  std::vector<TensorShape> tensors;
  for (const auto& [name, shape] : shapes) tensors.push_back({name, shape});
  std::reverse(tensors.begin(), tensors.end());  // the order must not matter
  return RecognizeModel(tensors);
}

TEST(ModelConfig, ReadsSizesAndRanks) {
  for (const bool flat : {false, true}) {
    for (const bool layer0_v : {false, true}) {
      const auto config = Recognize(MakeRwkv7({}, flat, layer0_v));
      ASSERT_TRUE(config.ok()) << config.status();
      EXPECT_EQ(config->version, RwkvVersion::kV7);
      EXPECT_EQ(config->L, 2);
      EXPECT_EQ(config->C, 96);
      EXPECT_EQ(config->H, 3);
      EXPECT_EQ(config->N, 32);
      EXPECT_EQ(config->V, 300);
      EXPECT_EQ(config->F, 384);
      EXPECT_EQ(config->rank_w, 16);
      EXPECT_EQ(config->rank_a, 24);
      EXPECT_EQ(config->rank_v, 8);
      EXPECT_EQ(config->rank_g, 40);
      EXPECT_EQ(config->parameters, 314'976);
    }
  }
}

TEST(ModelConfig, ReadsOneLayerWithAndWithoutItsValueBranch) {
  Sizes one;
  one.L = 1;
  EXPECT_EQ(Recognize(MakeRwkv7(one, false, true))->rank_v, 8);
  EXPECT_EQ(Recognize(MakeRwkv7(one, false, false))->rank_v, 0);
}

TEST(ModelConfig, DescribesPublishedSizes) {
  const auto text = [](Sizes s) { return Recognize(MakeRwkv7(s))->ToString(); };
  EXPECT_EQ(text({12, 768, 64, 65536, 3072, 64, 64, 32, 128}),
            "RWKV-7, 12 layers, width 768, 12 heads of 64, vocabulary 65536, 191.0 M parameters");
  EXPECT_EQ(text({61, 4096, 64, 65536, 16384, 192, 192, 128, 384}),
            "RWKV-7, 61 layers, width 4096, 64 heads of 64, vocabulary 65536, 13.3 B parameters");
  EXPECT_EQ(text({1, 16, 16, 24, 32, 4, 3, 2, 5}),
            "RWKV-7, 1 layer, width 16, 1 head of 16, vocabulary 24, 3.6 K parameters");
}

TEST(ModelConfig, RefusesMissingTensors) {
  const Shapes good = MakeRwkv7({});
  for (const auto& [name, shape] : good) {
    Shapes shapes = good;
    shapes.erase(name);
    const auto config = Recognize(shapes);
    ASSERT_FALSE(config.ok()) << name;
    EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
    // Without r_k or emb the file is no RWKV-7 at all, and the message says so.
    EXPECT_THAT(std::string(config.status().message()), HasSubstr("'" + name + "'"));
  }
}

TEST(ModelConfig, RefusesWrongShapes) {
  const Shapes good = MakeRwkv7({});
  // In a layer that gives no sizes of its own, each wrong shape is named with the tensor.
  for (const auto& [name, shape] : good) {
    const bool gives_sizes = name == "emb.weight" || name == "blocks.1.att.v1";
    if (name.rfind("blocks.0.", 0) == 0 || gives_sizes) continue;
    const std::vector<std::vector<int64_t>> kWrong = {{},
                                                      {shape[0] + 1},
                                                      {2, 2, shape.back()},
                                                      {1, 1, shape.back() + 1},
                                                      {shape.back(), shape[0] + 1}};
    for (const auto& wrong : kWrong) {
      Shapes shapes = good;
      shapes[name] = wrong;
      EXPECT_THAT(Refusal(Recognize(shapes)), HasSubstr("'" + name + "' has the shape")) << name;
    }
  }
}

TEST(ModelConfig, RefusesSizesThatDisagree) {
  const struct {
    const char* name;
    std::vector<int64_t> shape;
    const char* message;
  } kTable[] = {
      {"emb.weight", {300, 128}, "3 heads of 32 ('blocks.0.att.r_k') but a width of 128"},
      {"emb.weight", {301, 96}, "'head.weight' has the shape [300, 96]; expected [301, 96]"},
      {"emb.weight", {96}, "'emb.weight' has the shape [96]; expected a matrix"},
      {"emb.weight", {0, 96}, "expected a matrix"},
      {"emb.weight", {int64_t{1} << 40, 96}, "expected a matrix"},
      {"blocks.0.att.r_k", {96}, "expected a matrix"},
      {"blocks.0.att.r_k", {3, 33}, "3 heads of 33"},
      {"blocks.0.att.r_k", {6, 16}, "'blocks.1.att.r_k' has the shape [3, 32]; expected [6, 16]"},
      {"blocks.0.ffn.key.weight", {400, 96}, "expected [96, 400]"},
      {"blocks.0.att.w1", {96, 17}, "'blocks.0.att.w2' has the shape [16, 96]; expected [17, 96]"},
      {"blocks.0.att.g1", {96}, "expected [96, rank]"},
      {"blocks.0.att.a1", {96, 0}, "expected [96, rank]"},
      {"blocks.1.att.v1", {96, 9}, "'blocks.0.att.v1' has the shape [96, 8]; expected [96, 9]"},
  };
  for (const auto& row : kTable) {
    Shapes shapes = MakeRwkv7({});
    shapes[row.name] = row.shape;
    EXPECT_THAT(Refusal(Recognize(shapes)), HasSubstr(row.message)) << row.name;
  }
}

TEST(ModelConfig, RefusesOddLayers) {
  for (const char* name : {"blocks.x.ln1.weight", "blocks.-1.ln1.weight", "blocks.00.ln1.weight",
                           "blocks.10000.ln1.weight", "blocks.99999999999.ln1.weight", "blocks."}) {
    Shapes shapes = MakeRwkv7({});
    shapes[name] = {96};
    EXPECT_THAT(Refusal(Recognize(shapes)), HasSubstr("whose layer is no number below 10000"))
        << name;
  }
  Shapes shapes = MakeRwkv7({});
  shapes["blocks.9999.ln1.weight"] = {96};
  EXPECT_THAT(Refusal(Recognize(shapes)), HasSubstr("without the tensor 'blocks.2.ln1.weight'"));
}

TEST(ModelConfig, RefusesATensorTwice) {
  EXPECT_THAT(Refusal(RecognizeModel({{"emb.weight", {2, 2}}, {"emb.weight", {2, 2}}})),
              HasSubstr("'emb.weight' is there twice"));
}

// Names and shapes of what else people have, each with what it should be called.
TEST(ModelConfig, NamesOtherModels) {
  const auto with = [](std::initializer_list<std::string> names) {
    Shapes shapes = MakeRwkv7({});
    for (const std::string& name : names) shapes[name] = {96, 32};
    return shapes;
  };
  const std::string att = "blocks.0.att.", ffn = "blocks.0.ffn.";
  const Shapes emb = {{"emb.weight", {300, 96}}, {"head.weight", {300, 96}}};
  const auto old = [&](const Shapes& more) {
    Shapes shapes = emb;
    shapes.insert(more.begin(), more.end());
    return shapes;
  };
  const struct {
    const char* what;
    Shapes shapes;
  } kTable[] = {
      {"an RWKV-4", old({{att + "time_decay", {96}},
                         {att + "time_first", {96}},
                         {att + "time_mix_k", {1, 1, 96}}})},
      {"an RWKV-5.0", old({{att + "ln_x.weight", {96}},
                           {att + "time_decay", {3}},
                           {att + "time_mix_k", {1, 1, 96}}})},
      {"an RWKV-5.1", old({{att + "ln_x.weight", {96}},
                           {att + "time_decay", {3}},
                           {att + "gate.weight", {96, 96}}})},
      {"an RWKV-5.2", old({{att + "ln_x.weight", {96}},
                           {att + "time_decay", {3, 32}},
                           {att + "gate.weight", {96, 96}}})},
      {"an RWKV-6", old({{att + "ln_x.weight", {96}}, {att + "time_maa_x", {1, 1, 96}}})},
      {"an experimental variant of RWKV-6",
       old({{att + "time_maa_x", {1, 1, 96}}, {att + "time_maa_rkvw_w1", {96, 128}}})},
      {"an early experiment (RWKV-1 to RWKV-4)",
       old({{"head_q.weight", {96, 96}}, {att + "time_decay", {96}}})},
      {"an RWKV-1 to RWKV-3", old({{att + "time_w", {96}}})},
      {"an RWKV-7a", with({ffn + "s_emb.weight", ffn + "s1"})},
      {"an RWKV-7b", with({ffn + "s_emb.weight", "blocks.0.qkv.qq.weight", "blocks.0.qkv.k1"})},
      {"an RWKV-8 preview (rc00)", with({ffn + "enn.weight"})},
      {"an RWKV-8 preview (hybrid)", with({"blocks.0.qkv.qq.weight", "blocks.0.qkv.kk.weight"})},
      {"an RWKV-8 preview (ROSA)", with({"blocks.0.rosa.emb.weight"})},
      {"an experimental RWKV-7 with an attention branch", with({"blocks.0.qkv.qq.weight"})},
      {"an RWKV-7 with a tuned state", with({att + "time_state"})},
      {"a tuned state without its model",
       {{att + "time_state", {3, 32, 32}}, {"blocks.1.att.time_state", {3, 32, 32}}}},
      {"converted for one strategy", with({"_strategy"})},
      {"an adapter (LoRA)", {{"blocks.0.att.key.lora_A", {8, 96}}}},
      {"names have a prefix", {{"module.emb.weight", {300, 96}}}},
      {"layout of Hugging Face", {{"model.layers.0.attn.r_proj.weight", {96, 96}}}},
      {"an older RWKV in the layout of Hugging Face",
       {{"rwkv.blocks.0.attention.key.weight", {96, 96}}}},
      {"no 'emb.weight' (it starts with 'a', 'b', 'c')",
       {{"a", {1}}, {"b", {1}}, {"c", {1}}, {"d", {1}}}},
      {"it holds no tensors", {}},
      {"no 'blocks.0.att.r_k'", emb},
      {"1 tensors that plain RWKV-7 does not have, such as 'blocks.1.ffn.receptance.weight'",
       with({"blocks.1.ffn.receptance.weight"})},
  };
  for (const auto& row : kTable) {
    const std::string message = Refusal(Recognize(row.shapes));
    EXPECT_THAT(message, HasSubstr(row.what));
    EXPECT_THAT(message, HasSubstr("RWKV-7")) << "says what is supported";
  }
}

}  // namespace
}  // namespace skein::engine
