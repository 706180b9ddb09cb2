// Who a caller is and what they may do; and that the table of scopes names every RPC.

#include "server/authenticator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "google/protobuf/descriptor.h"
#include "google/rpc/error_details.pb.h"
#include "grpc/health/v1/health.pb.h"
#include "grpc/reflection/v1/reflection.pb.h"
#include "grpc/reflection/v1alpha/reflection.pb.h"
#include "server/status.h"
#include "server/token_command.h"
#include "skein/v1/control.pb.h"
#include "skein/v1/conversations.pb.h"
#include "skein/v1/generation.pb.h"
#include "skein/v1/info.pb.h"

namespace skein::server {
namespace {

using ::testing::HasSubstr;

constexpr char kGeneration[] = "skein.v1.Generation";
constexpr char kHealth[] = "grpc.health.v1.Health";

Principal Client(const std::string& name, std::initializer_list<Scope> scopes) {
  Principal principal{name, name + "-tenant", {}, {}};
  for (const Scope scope : scopes) principal.scopes.Add(scope);
  return principal;
}

class AuthenticatorTest : public ::testing::Test {
 protected:
  AuthenticatorTest() {
    auto clients = std::make_shared<ClientList>();
    EXPECT_TRUE(clients->AddToken(DigestOf("secret"), Client("writer", {Scope::kGenerate})).ok());
    EXPECT_TRUE(clients->AddCertificate("ann.example", Client("ann", {Scope::kAdmin})).ok());
    auth_.Replace(clients, /*open_health=*/true);
  }
  // The name of the caller, or the reason of the refusal.
  std::string Call(const char* service, const char* method, const Credentials& credentials) {
    const auto principal = auth_.Authenticate(service, method, credentials);
    return principal.ok() ? absl::StrCat("is ", (*principal)->name) : ReasonOf(principal.status());
  }
  Authenticator auth_;
};

TEST_F(AuthenticatorTest, KnowsTokensAndCertificates) {
  EXPECT_EQ(Call(kGeneration, "Generate", {{"Bearer secret"}, {}}), "is writer");
  EXPECT_EQ(Call(kGeneration, "Generate", {{"BEARER secret "}, {}}), "is writer");
  EXPECT_EQ(Call("skein.v1.Control", "Drain", {{}, {"other", "ann.example"}}), "is ann");
  EXPECT_EQ(Call(kGeneration, "Generate", {{}, {}}), "TOKEN_MISSING");
  EXPECT_EQ(Call(kGeneration, "Generate", {{}, {"other"}}), "TOKEN_MISSING");
  for (const char* header :
       {"Bearer secret2", "Bearer secre", "Bearer ", "Bearer", "", "secret", "Basic secret"}) {
    EXPECT_EQ(Call(kGeneration, "Generate", {{header}, {}}), "TOKEN_INVALID") << header;
  }
  // A bad token is not made good by a certificate, nor by a second header.
  EXPECT_EQ(Call("skein.v1.Control", "Drain", {{"Bearer x"}, {"ann.example"}}), "TOKEN_INVALID");
  EXPECT_EQ(Call(kGeneration, "Generate", {{"Bearer secret", "Bearer secret"}, {}}),
            "TOKEN_INVALID");
}

TEST_F(AuthenticatorTest, ScopesAreNeeded) {
  const Credentials writer = {{"Bearer secret"}, {}};
  EXPECT_EQ(Call("skein.v1.Conversations", "List", writer), "SCOPE_MISSING");
  EXPECT_EQ(Call("skein.v1.Info", "ListModels", writer), "is writer");
  EXPECT_EQ(Call(kGeneration, "NoSuchMethod", writer), "METHOD_NOT_LISTED");
  const auto refused = auth_.Authenticate("skein.v1.Control", "Drain", writer);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kPermissionDenied);
  google::rpc::ErrorInfo info;
  ASSERT_TRUE(info.ParseFromString(
      std::string(*refused.status().GetPayload("type.googleapis.com/google.rpc.ErrorInfo"))));
  EXPECT_EQ(info.metadata().at("scope"), "admin");
}

TEST_F(AuthenticatorTest, HealthMayBeOpen) {
  EXPECT_EQ(Call(kHealth, "Check", {{}, {}}), "is ");
  EXPECT_FALSE((*auth_.Authenticate(kHealth, "Check", {}))->scopes.Has(Scope::kGenerate));
  auth_.Replace(std::make_shared<ClientList>(), /*open_health=*/false);
  EXPECT_EQ(Call(kHealth, "Check", {{}, {}}), "TOKEN_MISSING");
}

TEST_F(AuthenticatorTest, RunningCallsKeepTheirPrincipal) {
  const auto before = *auth_.Authenticate(kGeneration, "Generate", {{"Bearer secret"}, {}});
  auth_.Replace(std::make_shared<ClientList>(), true);
  EXPECT_EQ(Call(kGeneration, "Generate", {{"Bearer secret"}, {}}), "TOKEN_INVALID");
  EXPECT_EQ(before->name, "writer");
}

TEST_F(AuthenticatorTest, OffMeansEverybodyMayDoEverythingThatIsListed) {
  auth_.Disable();
  const auto anybody = auth_.Authenticate("skein.v1.Control", "Drain", {});
  ASSERT_TRUE(anybody.ok());
  EXPECT_EQ((*anybody)->tenant, "");
  EXPECT_EQ(Call(kGeneration, "NoSuchMethod", {}), "METHOD_NOT_LISTED");
}

TEST(ClientList, RefusesTheSameSecretTwice) {
  ClientList list;
  ASSERT_TRUE(list.AddToken(DigestOf("x"), Client("a", {})).ok());
  EXPECT_THAT(std::string(list.AddToken(DigestOf("x"), Client("b", {})).message()),
              HasSubstr("'b' and 'a' have the same token"));
  ASSERT_TRUE(list.AddCertificate("x", Client("a", {})).ok());
  EXPECT_FALSE(list.AddCertificate("x", Client("b", {})).ok());
}

TEST(Tokens, AreNewEachTimeAndKnownByTheirHash) {
  const std::string token = NewToken();
  EXPECT_EQ(token.size(), 6 + 43);
  EXPECT_NE(NewToken(), token);
  // The digest of "abc", FIPS 180-2.
  EXPECT_EQ(HashOf("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

// Every method of every service that this program is built with is in the table, and nothing else.
TEST(AccessTable, NamesEveryRpc) {
  std::set<std::string> built, listed;
  for (const google::protobuf::FileDescriptor* file :
       {v1::GenerateRequest::descriptor()->file(), v1::Conversation::descriptor()->file(),
        v1::ServerInfo::descriptor()->file(), v1::LoadModelRequest::descriptor()->file(),
        grpc::health::v1::HealthCheckRequest::descriptor()->file(),
        grpc::reflection::v1::ServerReflectionRequest::descriptor()->file(),
        grpc::reflection::v1alpha::ServerReflectionRequest::descriptor()->file()}) {
    for (int s = 0; s < file->service_count(); ++s) {
      for (int m = 0; m < file->service(s)->method_count(); ++m) {
        built.insert(file->service(s)->method(m)->full_name());
      }
    }
  }
  for (const Access& access : AccessTable()) {
    EXPECT_TRUE(listed.insert(absl::StrCat(access.service, ".", access.method)).second);
    EXPECT_EQ(FindAccess(access.service, access.method), &access);
  }
  EXPECT_EQ(built, listed);
  EXPECT_EQ(FindAccess("skein.v1.Info", "Generate"), nullptr);
}

}  // namespace
}  // namespace skein::server
