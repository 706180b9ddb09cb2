#include "server/access.h"

#include <utility>

#include "absl/container/flat_hash_map.h"

namespace skein::server {
namespace {

constexpr Scope kGenerate = Scope::kGenerate;
constexpr Scope kConversations = Scope::kConversations;

constexpr char kGeneration[] = "skein.v1.Generation";
constexpr char kConversation[] = "skein.v1.Conversations";
constexpr char kInfo[] = "skein.v1.Info";
constexpr char kControl[] = "skein.v1.Control";
constexpr char kHealth[] = "grpc.health.v1.Health";

constexpr Access kTable[] = {
    {kGeneration, "Generate", Access::kScope, kGenerate},
    {kGeneration, "Cancel", Access::kScope, kGenerate},
    {kGeneration, "Attach", Access::kScope, kGenerate},
    {kGeneration, "Score", Access::kScope, kGenerate},
    {kGeneration, "Tokenize", Access::kScope, kGenerate},
    {kGeneration, "Detokenize", Access::kScope, kGenerate},
    {kConversation, "Create", Access::kScope, kConversations},
    {kConversation, "Get", Access::kScope, kConversations},
    {kConversation, "List", Access::kScope, kConversations},
    {kConversation, "Delete", Access::kScope, kConversations},
    {kConversation, "Fork", Access::kScope, kConversations},
    {kConversation, "Rewind", Access::kScope, kConversations},
    {kInfo, "GetServerInfo", Access::kClient},
    {kInfo, "ListModels", Access::kClient},
    {kControl, "LoadModel", Access::kScope, Scope::kAdmin},
    {kControl, "UnloadModel", Access::kScope, Scope::kAdmin},
    {kControl, "GetLoad", Access::kScope, Scope::kAdmin},
    {kControl, "Drain", Access::kScope, Scope::kAdmin},
    {kControl, "Undrain", Access::kScope, Scope::kAdmin},
    {kControl, "ReloadConfig", Access::kScope, Scope::kAdmin},
    {kHealth, "Check", Access::kOpen},
    {kHealth, "Watch", Access::kOpen},
    {"grpc.reflection.v1.ServerReflection", "ServerReflectionInfo", Access::kClient},
    {"grpc.reflection.v1alpha.ServerReflection", "ServerReflectionInfo", Access::kClient},
};

using Name = std::pair<absl::string_view, absl::string_view>;

}  // namespace

absl::Span<const Access> AccessTable() { return kTable; }

const Access* FindAccess(absl::string_view service, absl::string_view method) {
  static const auto& index = *[] {
    auto* map = new absl::flat_hash_map<Name, const Access*>();
    for (const Access& access : kTable) map->insert({{access.service, access.method}, &access});
    return map;
  }();
  const auto it = index.find(Name(service, method));
  return it == index.end() ? nullptr : it->second;
}

}  // namespace skein::server
