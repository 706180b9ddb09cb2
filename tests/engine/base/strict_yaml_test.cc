#include "engine/base/strict_yaml.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "engine/base/file.h"
#include "engine/base/units.h"

namespace skein::base {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

struct Config {
  std::string address = "127.0.0.1:50051";
  std::string level = "info";
  bool reflection = true;
  int64_t queued = 16;
  int64_t memory = 512 << 20;
  double rate = 0.5;
  double timeout = 30;
  std::vector<std::string> stops = {"a"};
  std::vector<double> buckets = {0.001, 1};

  YamlSchema Schema() {
    YamlSchema schema;
    schema.Add("listen.address", &address, "where gRPC listens");
    schema.AddChoice("log.level", &level, {"debug", "info", "error"}, "how much to log");
    schema.Add("listen.reflection", &reflection, "whether to describe the services");
    schema.Add("limits.queued", &queued, Range<int64_t>(1, 1000), "requests that wait");
    schema.AddBytes("limits.memory", &memory, Range<int64_t>(1 << 20, int64_t{1} << 40),
                    "for states");
    schema.Add("limits.rate", &rate, Range<double>(0, 1), "share");
    schema.AddSeconds("limits.timeout", &timeout, Range<double>(0, 3600), "per request");
    schema.Add("stops", &stops, "stop strings");
    schema.Add("metrics.buckets", &buckets, "upper bounds");
    return schema;
  }
};

TEST(StrictYaml, ReadsEveryType) {
  Config config;
  YamlSchema schema = config.Schema();
  const absl::Status status = schema.LoadText(
      "# a comment\n"
      "listen:\n"
      "  address: \"[::1]:1\"   # quoted\n"
      "  reflection: false\n"
      "log: {level: debug}\n"
      "limits:\n"
      "  queued: 8\n"
      "  memory: 1.5GiB\n"
      "  rate: 1e-3\n"
      "  timeout: 1500ms\n"
      "stops:\n"
      "  - \"\\n\\n\"\n"
      "  - 'User: '\n"
      "metrics:\n"
      "  buckets: [1, 2.5, -3]\n",
      "x.yaml");
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(config.address, "[::1]:1");
  EXPECT_FALSE(config.reflection);
  EXPECT_EQ(config.level, "debug");
  EXPECT_EQ(config.queued, 8);
  EXPECT_EQ(config.memory, int64_t{3} << 29);
  EXPECT_EQ(config.rate, 1e-3);
  EXPECT_EQ(config.timeout, 1.5);
  EXPECT_THAT(config.stops, ElementsAre("\n\n", "User: "));
  EXPECT_THAT(config.buckets, ElementsAre(1, 2.5, -3));
}

TEST(StrictYaml, AbsentKeysKeepTheirValue) {
  for (const char* text :
       {"", "# nothing\n", "---\n", "limits:\n", "limits: {}\n", "limits:\n  # queued: 1\n"}) {
    Config config;
    config.queued = 77;
    const absl::Status status = config.Schema().LoadText(text, "x.yaml");
    EXPECT_TRUE(status.ok()) << text << status;
    EXPECT_EQ(config.queued, 77);
  }
}

struct BadText {
  const char* text;
  const char* message;
};

class BadTextTest : public ::testing::TestWithParam<BadText> {};

TEST_P(BadTextTest, IsRefusedWithLineAndReason) {
  Config config;
  const absl::Status status = config.Schema().LoadText(GetParam().text, "x.yaml");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << GetParam().text;
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().message));
  EXPECT_THAT(std::string(status.message()), StartsWith("x.yaml:"));
}

INSTANTIATE_TEST_SUITE_P(
    Table, BadTextTest,
    ::testing::Values(
        BadText{"listen:\n  adress: x\n",
                "x.yaml:2: unknown key 'listen.adress'; did you mean 'listen.address'?"},
        BadText{"limit:\n  queued: 3\n", "x.yaml:1: unknown key 'limit'; did you mean 'limits'?"},
        BadText{"\n\nqueued: 3\n", "x.yaml:3: unknown key 'queued'; did you mean 'limits.queued'?"},
        BadText{"zzzzzzzzzzz: 3\n", "x.yaml:1: unknown key 'zzzzzzzzzzz'"},
        BadText{"limits:\n  queued: 0\n",
                "x.yaml:2: 'limits.queued': '0' is out of range; allowed is 1 to 1000"},
        BadText{"limits:\n  queued: 1.5\n", "expected an integer, found '1.5'"},
        BadText{"limits:\n  queued: 99999999999999999999\n", "expected an integer"},
        BadText{"limits:\n  queued: 0x10\n", "expected an integer, found '0x10'"},
        BadText{"limits:\n  queued:\n", "x.yaml:2: 'limits.queued' has no value"},
        BadText{"limits:\n  queued: ~\n", "has no value"},
        BadText{"limits:\n  queued: [1]\n", "takes one value, not a list"},
        BadText{"limits:\n  queued: {a: 1}\n", "takes a value, not keys"},
        BadText{"limits: 5\n", "'limits' holds keys of its own"},
        BadText{"limits: [5]\n", "'limits' holds keys of its own"},
        BadText{"limits:\n  rate: nan\n", "expected a number, found 'nan'"},
        BadText{"limits:\n  rate: inf\n", "expected a number"},
        BadText{"limits:\n  rate: 1.01\n", "allowed is 0 to 1"},
        BadText{"limits:\n  memory: 5 apples\n", "expected a size like 512MiB"},
        BadText{"limits:\n  memory: 1kB\n", "allowed is 1MiB to 1TiB"},
        BadText{"limits:\n  memory: 99999999TiB\n", "expected a size below 8 EiB"},
        BadText{"limits:\n  timeout: 30\n", "expected a duration with a unit"},
        BadText{"limits:\n  timeout: -1s\n", "allowed is 0s to 3600s"},
        BadText{"limits:\n  timeout: infs\n", "expected a duration with a unit"},
        BadText{"listen:\n  reflection: yes\n", "expected true or false, found 'yes'"},
        BadText{"log:\n  level: loud\n", "'loud' is none of: debug, info, error"},
        BadText{"stops: a\n", "'stops' takes a list"},
        BadText{"stops: [a, [b]]\n", "a list inside a list"},
        BadText{"stops:\n  - a: b\n", "x.yaml:1: 'stops' takes a list of values"},
        BadText{"stops: [a, ~]\n", "an empty list element"},
        BadText{"stops: [a\n", "not valid YAML"},
        BadText{"metrics:\n  buckets: [1, two]\n", "expected a number, found 'two'"},
        BadText{"limits:\n  queued: 1\n  queued: 2\n",
                "x.yaml:3: key 'limits.queued' appears twice"},
        BadText{"limits:\n  queued: 1\nlimits:\n  rate: 1\n",
                "x.yaml:3: key 'limits' appears twice"},
        BadText{"limits.queued: 1\nlimits:\n  queued: 2\n",
                "x.yaml:3: key 'limits.queued' appears twice"},
        BadText{"stops: &s [a]\n", "anchors (&name) are not supported"},
        BadText{"log:\n  level: &l info\nlisten:\n  address: *l\n", "x.yaml:2: anchors"},
        BadText{"log:\n  level: *nothing\n", "x.yaml:2: "},
        BadText{"limits:\n  <<: {queued: 1}\n", "unknown key 'limits.<<'"},
        BadText{"limits:\n  queued: !!int 5\n", "tags (!name) are not supported"},
        BadText{"log: !!python/object:os.system {level: info}\n", "tags (!name) are not supported"},
        BadText{"just a text\n", "x.yaml:1: expected keys and values"},
        BadText{"- a\n- b\n", "x.yaml:1: expected keys and values"},
        BadText{"? [a, b]\n: c\n", "a key must be a word"},
        BadText{"? {a: b}\n: c\n", "a key must be a word"},
        BadText{"\"\": c\n", "a key must be a word"},
        BadText{"log: {level: info}\n---\nlog: {level: info}\n", "a second document"},
        BadText{"log:\n\tlevel: info\n", "x.yaml:2: not valid YAML"},
        BadText{"log:\n level: info\n   queued: 3\n", "not valid YAML"},
        BadText{"log:\n  level: in\xFFo\n", "x.yaml:2: not valid UTF-8"},
        BadText{"a: \xED\xA0\x80\n", "not valid UTF-8"},
        BadText{"a: \xC0\x80\n", "not valid UTF-8"},
        BadText{"a: \xF4\x90\x80\x80\n", "not valid UTF-8"},
        BadText{"a: \xE2\x82", "not valid UTF-8"},
        BadText{"log:\n  level: info\x04\nfoo: bar\n", "x.yaml:2: control character 4"}));

TEST(StrictYaml, NoTextEndsTheProcess) {
  Config config;
  YamlSchema schema = config.Schema();
  EXPECT_FALSE(schema.LoadText(std::string("a\0b: 1", 6), "x").ok());
  EXPECT_FALSE(schema.LoadText(std::string(100000, '['), "x").ok());
  EXPECT_FALSE(schema.LoadText(std::string(100000, '{'), "x").ok());
  EXPECT_FALSE(schema.LoadText(std::string(2000, '-') + " x", "x").ok());
  // Every prefix of a good text, and every text with one byte replaced, ends in a status.
  const std::string good =
      "listen: {address: \"a\"}\nlimits:\n  queued: 8\nstops: [a, 'b', \"c\"]\n# end\n";
  for (size_t i = 0; i < good.size(); ++i) {
    schema.LoadText(good.substr(0, i), "x").IgnoreError();
    for (const char c : std::string("\"'[]{}:,&*!|>%@`#-?\n\t \\")) {
      std::string changed = good;
      changed[i] = c;
      schema.LoadText(changed, "x").IgnoreError();
    }
  }
}

TEST(StrictYaml, PrintReadsBackToTheSame) {
  Config config;
  config.address = "quote\" back\\slash \t\n\x01\x7F caf\xC3\xA9 # no: comment";
  config.rate = 0.1 + 0.2;
  config.timeout = 0.03;
  config.memory = (int64_t{1} << 30) + 1;
  config.stops = {"", "null", "[a", "- b", "\n\n"};
  config.buckets = {1e-300, 1.0 / 3, -5, 1e22};
  const std::string printed = config.Schema().Print();

  Config copy;
  copy.stops = {};
  YamlSchema schema = copy.Schema();
  const absl::Status status = schema.LoadText(printed, "printed");
  ASSERT_TRUE(status.ok()) << status << "\n" << printed;
  EXPECT_EQ(copy.address, config.address);
  EXPECT_EQ(copy.rate, config.rate);
  EXPECT_EQ(copy.timeout, config.timeout);
  EXPECT_EQ(copy.memory, config.memory);
  EXPECT_EQ(copy.stops, config.stops);
  EXPECT_EQ(copy.buckets, config.buckets);
  EXPECT_EQ(schema.Print(), printed);
}

TEST(StrictYaml, PrintGroupsSections) {
  Config config;
  EXPECT_THAT(
      config.Schema().Print(),
      StartsWith(
          "listen:\n  address: \"127.0.0.1:50051\"\n  reflection: true\nlog:\n  level: \"info\"\n"
          "limits:\n  queued: 16\n  memory: 512MiB\n  rate: 0.5\n  timeout: 30s\nstops: "
          "[\"a\"]\n"));
  EXPECT_THAT(config.Schema().Help(), AllOf(HasSubstr("  limits.queued (16): requests that wait\n"),
                                            HasSubstr("how much to log (debug, info, error)")));
}

TEST(StrictYaml, Set) {
  Config config;
  YamlSchema schema = config.Schema();
  EXPECT_TRUE(schema.Set("limits.queued=9").ok());
  EXPECT_EQ(config.queued, 9);
  EXPECT_TRUE(schema.Set("listen.address=a=b: c").ok());
  EXPECT_EQ(config.address, "a=b: c");
  EXPECT_TRUE(schema.Set("stops=x, y").ok());
  EXPECT_THAT(config.stops, ElementsAre("x", "y"));
  EXPECT_TRUE(schema.Set("stops=[\"x, y\"]").ok());
  EXPECT_THAT(config.stops, ElementsAre("x, y"));
  EXPECT_TRUE(schema.Set("stops=").ok());
  EXPECT_THAT(config.stops, IsEmpty());
  EXPECT_TRUE(schema.Set("metrics.buckets=1,2").ok());
  EXPECT_THAT(config.buckets, ElementsAre(1, 2));

  EXPECT_THAT(std::string(schema.Set("limits.queued").message()), HasSubstr("expected key=value"));
  EXPECT_THAT(std::string(schema.Set("limits.queud=1").message()),
              HasSubstr("did you mean 'limits.queued'?"));
  EXPECT_THAT(std::string(schema.Set("limits=1").message()), HasSubstr("unknown key 'limits'"));
  EXPECT_THAT(std::string(schema.Set("limits.queued=1001").message()),
              HasSubstr("'limits.queued': '1001'"));
  EXPECT_FALSE(schema.Set("stops=a], b: [c").ok());
  EXPECT_FALSE(schema.Set("stops=a\nlist2: b").ok());
  EXPECT_FALSE(schema.Set("listen.address=\xFF").ok());
  EXPECT_EQ(config.queued, 9);
}

TEST(StrictYaml, MissingFileIsNamed) {
  Config config;
  const absl::Status status = config.Schema().LoadFile("/no/such/file.yaml");
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("'/no/such/file.yaml'"));
}

TEST(StrictYaml, Nearest) {
  EXPECT_EQ(Nearest("greeedy", {"sample", "greedy"}), "greedy");
  EXPECT_EQ(Nearest("xyz", {"sample", "greedy"}), "");
  EXPECT_EQ(Nearest("ab", {"x"}), "");
  EXPECT_EQ(Nearest("anything", {}), "");
}

TEST(Units, PrintedValuesReadBackExactly) {
  for (const double seconds : {0.0, 30.0, 0.0015, 0.1, 1.0 / 3, 7200.5, 1e-9, -2.5}) {
    EXPECT_EQ(ParseSeconds(FormatSeconds(seconds)).value(), seconds) << FormatSeconds(seconds);
  }
  for (const int64_t bytes :
       {int64_t{0}, int64_t{1}, int64_t{1024}, int64_t{1} << 40, int64_t{1} << 62, INT64_MAX}) {
    EXPECT_EQ(ParseBytes(FormatBytes(bytes)).value(), bytes) << FormatBytes(bytes);
  }
  EXPECT_EQ(ParseSeconds("2m").value(), 120);
  EXPECT_EQ(ParseSeconds("1.5 h").value(), 5400);
  EXPECT_EQ(ParseSeconds("0").value(), 0);
  EXPECT_EQ(ParseSeconds("20us").value(), 20e-6);
  EXPECT_EQ(ParseBytes("2GB").value(), 2000000000);
  EXPECT_EQ(ParseBytes("2 kB").value(), 2000);
}

struct User {
  std::string name = "nobody";
  std::vector<std::string> roles = {"guest"};
  int64_t requests = 0;
};

struct Users {
  std::vector<User> users;
  int64_t last = 0;
};

YamlSchema SchemaOf(Users* config) {
  YamlSchema schema;
  schema.AddRecords<User>(
      "auth.users", &config->users,
      [](YamlSchema* s, User* u) {
        s->Add("name", &u->name, "");
        s->Add("roles", &u->roles, "");
        s->Add("quotas.requests", &u->requests, Range<int64_t>(0, 100), "");
      },
      "who may come in");
  schema.Add("last", &config->last, Range<int64_t>(0, 9), "");
  return schema;
}

TEST(YamlRecords, AreReadAndPrinted) {
  Users config;
  YamlSchema schema = SchemaOf(&config);
  EXPECT_EQ(schema.Print(), "auth:\n  users: []\nlast: 0\n");
  const char kText[] =
      "auth:\n  users:\n    - name: ann\n      quotas: {requests: 4}\n    - roles: [a, b]\nlast: "
      "3\n";
  ASSERT_TRUE(schema.LoadText(kText, "x.yaml").ok());
  ASSERT_EQ(config.users.size(), 2);
  EXPECT_EQ(config.users[0].name, "ann");
  EXPECT_EQ(config.users[0].requests, 4);
  EXPECT_THAT(config.users[0].roles, ElementsAre("guest"));
  EXPECT_EQ(config.users[1].name, "nobody");
  EXPECT_THAT(config.users[1].roles, ElementsAre("a", "b"));
  EXPECT_EQ(config.last, 3);
  Users again;
  YamlSchema second = SchemaOf(&again);
  ASSERT_TRUE(second.LoadText(schema.Print(), "printed").ok());
  EXPECT_EQ(second.Print(), schema.Print());
  EXPECT_THAT(schema.Print(),
              HasSubstr("{name: \"ann\", roles: [\"guest\"], quotas: {requests: 4}}"));
  // A second source replaces the list.
  ASSERT_TRUE(schema.Set("auth.users=[{name: bob}]").ok());
  ASSERT_EQ(config.users.size(), 1);
  EXPECT_EQ(config.users[0].name, "bob");
  ASSERT_TRUE(schema.Set("auth.users=[]").ok());
  EXPECT_TRUE(config.users.empty());
}

TEST(YamlRecords, MistakesNameTheLine) {
  for (const auto& [text, message] : std::vector<std::pair<std::string, std::string>>{
           {"auth:\n  users:\n    - nmae: x\n",
            "x.yaml:3: unknown key 'nmae'; did you mean 'name'?"},
           {"auth:\n  users:\n    - name: x\n      name: y\n",
            "x.yaml:4: key 'name' appears twice"},
           {"auth:\n  users:\n    - quotas: {requests: 101}\n",
            "x.yaml:3: 'quotas.requests': '101' is out of range"},
           {"auth:\n  users: [ann]\n", "x.yaml:2: 'auth.users' takes a list of maps"},
           {"auth:\n  users: {name: ann}\n",
            "x.yaml:2: 'auth.users' takes a list of maps, not keys"},
           {"auth:\n  users: ann\n", "x.yaml:2: 'auth.users' takes a list of maps"},
           {"auth:\n  users: [{name: a}, b]\n", "x.yaml:2: a list of both values and maps"},
           {"auth:\n  users: [b, {name: a}]\n", "x.yaml:2: a list of both values and maps"},
           {"auth:\n  users:\n    - roles: [{a: b}]\n",
            "x.yaml:3: a list of maps inside a map of a list"},
           {"auth:\n  users:\n    -\n", "an empty list element"}}) {
    Users config;
    const absl::Status status = SchemaOf(&config).LoadText(text, "x.yaml");
    EXPECT_THAT(std::string(status.message()), HasSubstr(message)) << text;
  }
}

}  // namespace
}  // namespace skein::base
