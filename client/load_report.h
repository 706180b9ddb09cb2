#pragma once
// What a load run found, for people and for programs.

#include <string>

#include "client/load_run.h"
#include "client/terminal.h"

namespace skein::client {

// "[####....] 12 of 30 s, 540 requests, 81 open, 1234 tokens/s, first token p99 12.3 ms"
std::string ProgressLine(const LoadOptions& options, const LoadRun& run);
// The run is over.
void PrintLoadReport(const LoadOptions& options, const LoadRun& run, Terminal* terminal);
// One line.
std::string LoadReportJson(const LoadOptions& options, const LoadRun& run);

}  // namespace skein::client
