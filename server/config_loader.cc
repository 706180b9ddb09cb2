#include "server/config_loader.h"

#include <sys/stat.h>

#include "engine/base/check.h"

extern char** environ;

namespace skein::server {
namespace {

constexpr char kDefaultConfig[] = "config.yaml";

absl::Status Read(const ConfigArguments& arguments, base::YamlSchema* schema) {
  struct stat info {};
  const bool found = stat(kDefaultConfig, &info) == 0;
  if (!arguments.config.empty() || found) {
    SKEIN_RETURN_IF_ERROR(
        schema->LoadFile(arguments.config.empty() ? kDefaultConfig : arguments.config));
  }
  SKEIN_RETURN_IF_ERROR(ApplyEnvironment(schema, environ));
  for (const std::string& assignment : arguments.set) {
    SKEIN_RETURN_IF_ERROR(schema->Set(assignment));
  }
  if (!arguments.model.empty()) {
    SKEIN_RETURN_IF_ERROR(schema->Set("model.path=" + arguments.model));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<LoadedConfig> LoadConfig(const ConfigArguments& arguments) {
  LoadedConfig loaded;
  base::YamlSchema schema = MakeSchema(&loaded.config);
  SKEIN_RETURN_IF_ERROR(Read(arguments, &schema));
  SKEIN_RETURN_IF_ERROR(Validate(loaded.config));
  loaded.text = schema.Print();
  return loaded;
}

}  // namespace skein::server
