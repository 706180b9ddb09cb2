#pragma once
// What the log says of a request: ids, model, conversation, timings, token counts. Never a word of
// its prompt or answer.

#include "server/log.h"
#include "server/request_record.h"

namespace skein::server {

// Adds how the request went, as far as it is known.
void Describe(const RequestRecord& record, LogLine* line);
// One that ended when nobody read it any more: its stream's line could not tell.
void LogUnread(const RequestRecord& record);

}  // namespace skein::server
