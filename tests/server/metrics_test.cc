// What is counted, by which label, and that labels are bounded. Gauges of real engines are seen
// from outside, in tests/python/test_prometheus.py.

#include "server/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace skein::server {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class MetricsTest : public testing::Test {
 protected:
  // The value of a series, "name{labels}"; -1 when it is not there.
  double Value(const std::string& series) {
    const std::string text = metrics_.Scrape();
    for (const absl::string_view line : absl::StrSplit(text, '\n')) {
      if (absl::StartsWith(line, series + " "))
        return std::stod(std::string(line.substr(series.size())));
    }
    return -1;
  }
  int Lines(const std::string& start) {
    const std::string text = metrics_.Scrape();
    int n = 0;
    for (const absl::string_view line : absl::StrSplit(text, '\n'))
      n += absl::StartsWith(line, start);
    return n;
  }
  static engine::RequestReport Ended(const std::string& tenant, int64_t prompt) {
    engine::RequestReport report;
    report.code = "OK";
    report.finish_reason = "stop";
    report.tenant = tenant;
    report.usage.prompt_tokens = prompt;
    return report;
  }
  Metrics metrics_{MetricsConfig(), "abc"};
};

TEST_F(MetricsTest, TokensHaveATenantOnlyWhereThereAreTenants) {
  const auto model = metrics_.AddModel({"m", "", "f", "", ""});
  EXPECT_EQ(Value("skein_generation_tokens_total{model=\"m\"}"), 0);
  const std::vector<engine::TenantTokens> generated = {{"", 3}, {"acme", 4}, {"idle", 0}};
  engine::StepReport step;
  step.decode_rows = step.tokens = step.generated_tokens = 7;
  step.generated = generated;
  model->OnStep(step);
  model->OnStep(step);
  model->OnRequestDone(Ended("acme", 11));
  EXPECT_EQ(Value("skein_generation_tokens_total{model=\"m\"}"), 6);
  EXPECT_EQ(Value("skein_generation_tokens_total{model=\"m\",tenant=\"acme\"}"), 8);
  EXPECT_EQ(Value("skein_prompt_tokens_total{model=\"m\",tenant=\"acme\"}"), 11);
  EXPECT_THAT(metrics_.Scrape(), Not(HasSubstr("tenant=\"idle\"")));
  // Nothing else has the label.
  EXPECT_EQ(Value("skein_requests_total{code=\"OK\",finish_reason=\"stop\",kind=\"generate\","
                  "model=\"m\"}"),
            1);
}

TEST_F(MetricsTest, TheTenantLabelIsBounded) {
  const auto model = metrics_.AddModel({"m", "", "f", "", ""});
  for (int i = 0; i < 1000; ++i) model->OnRequestDone(Ended(absl::StrCat("t", i), 1));
  EXPECT_LE(Lines("skein_prompt_tokens_total{"), 102);
  EXPECT_EQ(Value("skein_prompt_tokens_total{model=\"m\",tenant=\"t7\"}"), 1);
  EXPECT_GE(Value("skein_prompt_tokens_total{model=\"m\",tenant=\"other\"}"), 900);
  model->OnRequestDone(Ended("t7", 1));
  EXPECT_EQ(Value("skein_prompt_tokens_total{model=\"m\",tenant=\"t7\"}"), 2);
}

TEST_F(MetricsTest, AReplacedModelCountsOnAndItsInfoGoes) {
  auto old_model = metrics_.AddModel({"m", "", "one", "", ""});
  old_model->OnRequestDone(Ended("", 5));
  const auto new_model = metrics_.AddModel({"m", "", "two", "", ""});
  const auto again = metrics_.AddModel({"m", "", "two", "", ""});
  new_model->OnRequestDone(Ended("", 5));
  EXPECT_EQ(Value("skein_prompt_tokens_total{model=\"m\"}"), 10);
  EXPECT_EQ(Lines("skein_model_info{"), 2);
  old_model.reset();
  EXPECT_EQ(Lines("skein_model_info{"), 1);
  EXPECT_THAT(metrics_.Scrape(), HasSubstr("fingerprint=\"two\""));
  EXPECT_EQ(Value("skein_prompt_tokens_total{model=\"m\"}"), 10);
}

TEST_F(MetricsTest, StatesThatMove) {
  const auto model = metrics_.AddModel({"m", "", "f", "", ""});
  engine::RequestReport report = Ended("", 1);
  report.restored_from = "host";
  report.timings.restore = absl::Milliseconds(2);
  report.parkings = 1;
  report.to_host = {absl::Milliseconds(3), absl::Milliseconds(4)};
  report.to_device = {absl::Milliseconds(5)};
  model->OnRequestDone(report);
  EXPECT_EQ(Value("skein_state_cache_misses_total{model=\"m\",reason=\"evicted\"}"), 0);
  report.restored_from = "tokens";
  report.missed = "model";
  report.parkings = 0;
  model->OnRequestDone(report);
  EXPECT_EQ(Value("skein_state_cache_hits_total{model=\"m\",tier=\"host\"}"), 1);
  EXPECT_EQ(Value("skein_state_cache_misses_total{model=\"m\",reason=\"model\"}"), 1);
  EXPECT_EQ(Value("skein_state_cache_misses_total{model=\"m\",reason=\"evicted\"}"), 0);
  EXPECT_EQ(Value("skein_state_restores_total{from=\"tokens\",model=\"m\"}"), 1);
  EXPECT_EQ(Value("skein_state_evictions_total{from=\"device\",model=\"m\",to=\"host\"}"), 1);
  EXPECT_EQ(Value("skein_state_transfer_seconds_count{direction=\"to_device\",model=\"m\"}"), 4);
  EXPECT_EQ(Value("skein_state_transfer_seconds_count{direction=\"to_host\",model=\"m\"}"), 4);
}

TEST_F(MetricsTest, ReloadsOfTheConfiguration) {
  EXPECT_EQ(Value("skein_config_last_reload_successful"), 1);
  EXPECT_EQ(Value("skein_config_info{sha256=\"abc\"}"), 1);
  metrics_.ConfigReloaded(false, "");
  EXPECT_EQ(Value("skein_config_last_reload_successful"), 0);
  EXPECT_EQ(Value("skein_config_info{sha256=\"abc\"}"), 1);
  metrics_.ConfigReloaded(true, "def");
  EXPECT_EQ(Value("skein_config_last_reload_successful"), 1);
  EXPECT_EQ(Value("skein_config_info{sha256=\"abc\"}"), -1);
  EXPECT_EQ(Value("skein_config_info{sha256=\"def\"}"), 1);
}

TEST_F(MetricsTest, NoFamilyIsToldTwice) {
  const auto model = metrics_.AddModel({"m", "", "f", "", ""});
  const std::string text = metrics_.Scrape();
  std::vector<std::string> types;
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    if (absl::StartsWith(line, "# TYPE ")) types.emplace_back(line);
  }
  std::sort(types.begin(), types.end());
  EXPECT_EQ(std::adjacent_find(types.begin(), types.end()), types.end());
  EXPECT_GT(types.size(), 25);
}

}  // namespace
}  // namespace skein::server
