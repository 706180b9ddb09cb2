#include "server/free_memory.h"

#include <malloc.h>

namespace skein::server {

void GiveBackFreeMemory() { malloc_trim(0); }

}  // namespace skein::server
