#pragma once
// Included before all else in builds with the thread sanitizer: there map_field.h lays maps out for
// a libprotobuf that was built with it too, and the one that is installed was not. All that it
// includes still sees the sanitizer.

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#pragma push_macro("__SANITIZE_THREAD__")
#undef __SANITIZE_THREAD__
#include <google/protobuf/map_field.h>  // IWYU pragma: keep
#pragma pop_macro("__SANITIZE_THREAD__")
