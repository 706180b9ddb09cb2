#include "server/version.h"

namespace skein::server {

const char kVersion[] = SKEIN_VERSION;

}  // namespace skein::server
