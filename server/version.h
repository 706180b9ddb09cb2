#pragma once

namespace skein::server {

extern const char kVersion[];  // the project's version in the top CMakeLists.txt

}  // namespace skein::server
