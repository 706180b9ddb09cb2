#pragma once

namespace skein::server {
inline constexpr char kVersion[] = "0.1.0";
}
