// The configuration: config.yaml and the code agree, overrides, and what is refused.

#include "server/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "kernels/device.h"

namespace skein::server {
namespace {

using ::testing::HasSubstr;

std::string ReadConfig() {
  std::ifstream file("config.yaml");  // tests run in the source tree
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

TEST(ConfigYaml, HoldsEveryKeyWithItsDefault) {
  ServerConfig defaults, loaded;
  base::YamlSchema expected = MakeSchema(&defaults);
  base::YamlSchema schema = MakeSchema(&loaded);
  ASSERT_TRUE(schema.LoadText(ReadConfig(), "config.yaml").ok());
  EXPECT_EQ(schema.Print(), expected.Print());
  // A key that is missing would keep its default, so each is looked for.
  std::istringstream printed(expected.Print());
  std::string line;
  const std::string text = absl::StrCat("\n", ReadConfig());
  while (std::getline(printed, line)) {
    const std::string key = line.substr(0, line.find(':') + 1);
    EXPECT_THAT(text, HasSubstr(absl::StrCat("\n", key))) << "config.yaml lacks it";
  }
}

TEST(ConfigYaml, ExplainsEveryKey) {
  std::istringstream text(ReadConfig());
  std::string line, before;
  while (std::getline(text, line)) {
    const bool is_key =
        line.rfind("  ", 0) == 0 && line.find_first_not_of(' ') == 2 && line[2] != '#';
    if (is_key) {
      EXPECT_THAT(before, HasSubstr("  # ")) << line;
    }
    before = line;
  }
}

TEST(Config, EnvironmentNamesKeys) {
  ServerConfig config;
  base::YamlSchema schema = MakeSchema(&config);
  const char* environment[] = {"PATH=/bin", "SKEIND_LIMITS__QUEUED=8", "SKEIND_MODEL__PATH=a=b",
                               nullptr};
  ASSERT_TRUE(ApplyEnvironment(&schema, environment).ok());
  EXPECT_EQ(config.limits.queued, 8);
  EXPECT_EQ(config.model.path, "a=b");
}

TEST(Config, EnvironmentRefusesUnknownKeys) {
  ServerConfig config;
  base::YamlSchema schema = MakeSchema(&config);
  const char* environment[] = {"SKEIND_LIMITS__QUEUD=8", nullptr};
  const absl::Status status = ApplyEnvironment(&schema, environment);
  EXPECT_THAT(std::string(status.message()), HasSubstr("SKEIND_LIMITS__QUEUD"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("limits.queued"));
}

TEST(Config, TheProcessorIsAskedByItself) {
  const auto error = [](CpuConfig cpu) { return std::string(ValidateCpu(cpu).message()); };
  EXPECT_EQ(error({}), "");
  EXPECT_THAT(error({0, "z80", ""}), HasSubstr("cpu: unknown CPU tier 'z80'"));
  EXPECT_THAT(error({0, "", "all"}), HasSubstr("cpu: 'all' is neither auto nor a list"));
}

TEST(Config, ValuesMustFitTogether) {
  EXPECT_TRUE(Validate(ServerConfig()).ok());
  const auto fails = [](void (*change)(ServerConfig&), const char* word) {
    ServerConfig config;
    change(config);
    const absl::Status status = Validate(config);
    EXPECT_FALSE(status.ok()) << word;
    EXPECT_THAT(std::string(status.message()), HasSubstr(word));
  };
  fails([](ServerConfig& c) { c.defaults.max_tokens = c.limits.max_tokens + 1; },
        "defaults.max_tokens");
  fails([](ServerConfig& c) { c.limits.queued_tokens = c.limits.prompt_tokens - 1; },
        "limits.prompt_tokens");
  fails([](ServerConfig& c) { c.engine.max_step_tokens = c.engine.slots - 1; }, "engine.slots");
  fails([](ServerConfig& c) { c.metrics.latency_buckets = {1, 1}; }, "latency_buckets");
  fails([](ServerConfig& c) { c.metrics.latency_buckets = {0}; }, "latency_buckets");
  fails([](ServerConfig& c) { c.listen.address = ""; }, "listen.address");
  fails([](ServerConfig& c) { c.listen.address = "127.0.0.1"; },
        "listen.address: '127.0.0.1' is no");
  fails([](ServerConfig& c) { c.listen.metrics = "9464"; }, "listen.metrics: '9464' is no address");
  fails([](ServerConfig& c) { c.listen.metrics = "unix:/tmp/x"; }, "listen.metrics: 'unix:/tmp/x'");
  fails(
      [](ServerConfig& c) {
        c.models = {{"a/demo.pth", "", "auto", ""}};
      },
      "models: two models have the name 'demo'");
}

TEST(Config, PromptsHaveOneTextAndANameOfTheirOwn) {
  const auto check = [](std::vector<PromptConfig> prompts) {
    ServerConfig config;
    config.prompts = std::move(prompts);
    return std::string(Validate(config).message());
  };
  EXPECT_EQ(check({{"a", "text", "", ""}, {"b", "", "system", ""}, {"c", "x", "", "m"}}), "");
  EXPECT_EQ(check({{"a", "x", "", "m"}, {"a", "y", "", "n"}}), "") << "for two models";
  EXPECT_THAT(check({{"a", "", "", ""}}), HasSubstr("prompts[0] ('a') must have either"));
  EXPECT_THAT(check({{"a", "x", "y", ""}}), HasSubstr("must have either text or system"));
  EXPECT_THAT(check({{"a", "x", "", ""}, {"a", "y", "", "n"}}),
              HasSubstr("prompts[1] ('a') has the name of prompts[0]"));
  for (const std::string& name : {std::string(), std::string(129, 'x'), std::string("a\nb")}) {
    EXPECT_THAT(check({{name, "x", "", ""}}), HasSubstr("must have a name of at most 128 bytes"));
  }
}

TEST(Config, ModelNameComesFromTheFile) {
  ServerConfig config;
  for (const auto& [path, name] :
       std::vector<std::pair<std::string, std::string>>{{"models/demo.safetensors", "demo"},
                                                        {"x.pth", "x"},
                                                        {"/a.b/plain", "plain"},
                                                        {"rwkv7-g1-0.1b.pth", "rwkv7-g1-0.1b"}}) {
    config.model.path = path;
    EXPECT_EQ(config.model.Name(), name);
  }
  config.model.name = "mine";
  EXPECT_EQ(config.model.Name(), "mine");
}

// Budgets that are not told are shares of what the process may use.
TEST(Config, BudgetsAreSharesOfTheMemory) {
  ServerConfig config;
  EXPECT_EQ(config.ToStoreOptions().budget_bytes, kernels::UsableMemoryBytes() / 4);
  EXPECT_EQ(config.ToStoreOptions().token_budget_bytes, kernels::UsableMemoryBytes() / 16);
  config.control.memory_bytes = int64_t{8} << 30;
  EXPECT_EQ(config.ToStoreOptions().budget_bytes, int64_t{2} << 30);
  EXPECT_EQ(config.ToStoreOptions().token_budget_bytes, int64_t{512} << 20);
  config.conversations.budget_bytes = 7;
  config.conversations.token_budget_bytes = 8;
  EXPECT_EQ(config.ToStoreOptions().budget_bytes, 7);
  EXPECT_EQ(config.ToStoreOptions().token_budget_bytes, 8);
}

}  // namespace
}  // namespace skein::server
