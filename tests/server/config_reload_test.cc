// Which keys of a changed configuration are taken while the server runs.

#include "server/config_reload.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace skein::server {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

TEST(ConfigReloadTest, NothingChanged) {
  const ReloadPlan plan = PlanReload({}, {});
  EXPECT_THAT(plan.applied, IsEmpty());
  EXPECT_THAT(plan.ignored, IsEmpty());
}

TEST(ConfigReloadTest, WhatCanChangeIsTakenAndTheRestStays) {
  ServerConfig present, wanted;
  wanted.limits.queued = 9;
  wanted.defaults.temperature = 0.5;
  wanted.log.level = "debug";
  wanted.listen.tls.certificate = "new.pem";
  wanted.listen.tls.require_client_certificate = true;
  wanted.control.model_folders = {"a", "b"};
  wanted.auth.tokens.emplace_back().name = "client";
  wanted.drain_seconds = 5;
  wanted.listen.address = "127.0.0.1:1";
  wanted.model.path = "other.pth";
  wanted.models.emplace_back().path = "more.pth";
  wanted.engine.slots = 3;
  wanted.log.format = "json";
  const ReloadPlan plan = PlanReload(present, wanted);
  EXPECT_THAT(plan.applied,
              UnorderedElementsAre("limits.queued", "defaults.temperature", "log.level",
                                   "listen.tls.certificate", "control.model_folders", "auth.tokens",
                                   "shutdown.drain"));
  EXPECT_THAT(plan.ignored,
              UnorderedElementsAre("listen.address", "listen.tls.require_client_certificate",
                                   "model.path", "models", "engine.slots", "log.format"));
  EXPECT_EQ(plan.config.limits.queued, 9);
  EXPECT_EQ(plan.config.listen.tls.certificate, "new.pem");
  EXPECT_EQ(plan.config.listen.address, present.listen.address);
  EXPECT_EQ(plan.config.engine.slots, present.engine.slots);
  EXPECT_EQ(plan.config.model.path, present.model.path);
}

// A key belongs to one of both kinds: whatever is changed is told.
TEST(ConfigReloadTest, EveryKeyIsTold) {
  ServerConfig present;
  const auto keys = MakeSchema(&present).Values();
  int told = 0;
  for (size_t i = 0; i < keys.size(); ++i) {
    ServerConfig wanted;
    base::YamlSchema schema = MakeSchema(&wanted);
    bool changed = false;
    for (const char* value : {"1", "2", "true", "false", "2s", "3s", "bf16", "debug", "json", "x",
                              "x.pem", "127.0.0.1:5"}) {
      if (schema.Set(keys[i].first + "=" + value).ok() && schema.Values()[i] != keys[i]) {
        changed = true;
        break;
      }
    }
    if (!changed) continue;  // lists of maps
    const ReloadPlan plan = PlanReload(present, wanted);
    EXPECT_EQ(plan.applied.size() + plan.ignored.size(), 1u) << keys[i].first;
    EXPECT_THAT(plan.applied.empty() ? plan.ignored : plan.applied, ElementsAre(keys[i].first));
    ++told;
  }
  EXPECT_GT(told, 50);
}

}  // namespace
}  // namespace skein::server
