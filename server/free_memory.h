#pragma once
// What was freed and is still this process's: the allocator has an arena for each few threads and
// keeps what is free between what is used, which after hours of mixed requests is more than what
// is used.

namespace skein::server {

// Gives whole free pages back to the system. Takes milliseconds; any thread.
void GiveBackFreeMemory();

}  // namespace skein::server
