#include "client/load_report.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"

namespace skein::client {
namespace {

using Json = nlohmann::ordered_json;

struct Row {
  const char* name;  // for people
  const char* key;   // in JSON
  const LatencyHistogram LoadStats::*histogram;
};

constexpr Row kRows[] = {
    {"first token", "first_token", &LoadStats::first},
    {"between tokens", "between_tokens", &LoadStats::between},
    {"whole request", "request", &LoadStats::whole},
    {"refusal", "refusal", &LoadStats::refused},
    {"start lag", "start_lag", &LoadStats::lag},
};

struct Quantile {
  const char* name;
  double share;
};
constexpr Quantile kQuantiles[] = {{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"p99.9", 0.999}};

std::string Time(double seconds) {
  if (seconds >= 100) return absl::StrFormat("%.0f s", seconds);
  if (seconds >= 1) return absl::StrFormat("%.2f s", seconds);
  if (seconds >= 0.001) return absl::StrFormat("%.2f ms", seconds * 1e3);
  return absl::StrFormat("%.1f us", seconds * 1e6);
}

std::string Shape(const LoadOptions& o) {
  std::string line =
      o.open_loop() ? absl::StrFormat("open loop, %g %s a second (Poisson)", o.rate,
                                      o.turns.IsAlways(1) ? "requests" : "conversations")
                    : absl::StrCat("closed loop, ", o.users, o.users == 1 ? " user" : " users");
  absl::StrAppend(&line, ", prompts ", o.prompt.text(), ", answers ", o.output.text(), " tokens");
  if (!o.turns.IsAlways(1)) absl::StrAppend(&line, ", turns ", o.turns.text());
  if (!o.think.IsAlways(0)) absl::StrAppend(&line, ", think time ", o.think.text(), " s");
  absl::StrAppend(&line, ", ", o.connections, o.connections == 1 ? " connection" : " connections",
                  ", seed ", o.seed);
  return line;
}

double PerSecond(int64_t count, double seconds) {
  return seconds > 0 ? static_cast<double>(count) / seconds : 0;
}

std::string Counts(const std::map<std::string, int64_t>& counts) {
  return absl::StrJoin(counts, ", ", [](std::string* out, const auto& entry) {
    absl::StrAppend(out, entry.first, " ", entry.second);
  });
}

void PrintTable(const LoadStats& stats, Terminal* terminal) {
  std::string head = absl::StrFormat("%-16s", "");
  for (const Quantile& q : kQuantiles) absl::StrAppendFormat(&head, "%11s", q.name);
  terminal->Line(absl::StrFormat("%s%11s%11s%10s", head, "max", "mean", "count"));
  for (const Row& row : kRows) {
    const LatencyHistogram& h = stats.*row.histogram;
    if (h.count() == 0) continue;
    std::string line = absl::StrFormat("%-16s", row.name);
    for (const Quantile& q : kQuantiles)
      absl::StrAppendFormat(&line, "%11s", Time(h.QuantileSeconds(q.share)));
    terminal->Line(absl::StrFormat("%s%11s%11s%10d", line, Time(h.MaxSeconds()),
                                   Time(h.MeanSeconds()), h.count()));
  }
}

void PrintNotes(const LoadOptions& options, const LoadRun& run, Terminal* terminal) {
  const LoadStats& s = run.stats();
  if (s.slow > 0 || s.ended_here > 0) {
    terminal->Line(absl::StrCat(s.slow.load(), " slow readers (not in the table), ",
                                s.ended_here.load(), " cancelled or hung up on"));
  }
  if (s.cut > 0) {
    terminal->Line(absl::StrCat("note: ", s.cut.load(),
                                " requests still ran at the end and were cut: they are not in the "
                                "table, so its tail is too short"));
  }
  if (run.never_started() > 0) {
    terminal->Line(absl::StrCat("note: ", run.never_started(),
                                " were due and never started, because --max-open (",
                                options.max_open, ") ran: the server did not keep up"));
  }
  if (run.conversations_left() > 0) {
    terminal->Line(
        absl::StrCat("note: ", run.conversations_left(), " conversations could not be deleted"));
  }
}

Json Quantiles(const LatencyHistogram& h) {
  Json out;
  for (const Quantile& q : kQuantiles) out[q.name] = h.QuantileSeconds(q.share);
  out["max"] = h.MaxSeconds();
  out["mean"] = h.MeanSeconds();
  out["count"] = h.count();
  return out;
}

}  // namespace

std::string ProgressLine(const LoadOptions& options, const LoadRun& run) {
  constexpr int kWidth = 20;
  const LoadStats& s = run.stats();
  const double whole = options.warm_up + options.duration;
  const double done = options.requests > 0
                          ? static_cast<double>(s.started) / static_cast<double>(options.requests)
                          : run.elapsed() / whole;
  const int filled = static_cast<int>(std::clamp(done, 0.0, 1.0) * kWidth);
  std::string line =
      absl::StrCat("[", std::string(filled, '#'), std::string(kWidth - filled, '.'), "] ");
  if (options.requests > 0) {
    absl::StrAppend(&line, s.started.load(), " of ", options.requests, " requests");
  } else {
    absl::StrAppendFormat(&line, "%.0f of %.0f s, %d requests", std::min(run.elapsed(), whole),
                          whole, s.started.load());
  }
  absl::StrAppend(&line, ", ", s.open.load(), " open");
  if (s.failed > 0) absl::StrAppend(&line, ", ", s.failed.load(), " failed");
  if (s.first.count() > 0) {
    absl::StrAppend(&line, ", first token p99 ", Time(s.first.QuantileSeconds(0.99)));
  }
  return line;
}

void PrintLoadReport(const LoadOptions& options, const LoadRun& run, Terminal* terminal) {
  const LoadStats& s = run.stats();
  const double seconds = run.measured_seconds();
  terminal->Line(Shape(options));
  terminal->Line(
      absl::StrFormat("%.1f s measured after %g s of warm-up", seconds, options.warm_up));
  PrintTable(s, terminal);
  terminal->Line(absl::StrFormat("requests: %d (%.1f a second), %d ok, %d failed", s.started.load(),
                                 PerSecond(s.started, seconds), s.ok.load(), s.failed.load()));
  terminal->Line(absl::StrFormat(
      "tokens: %.1f a second generated; of ended requests %d in, %d out, %d reused from states",
      PerSecond(s.tokens_in_time, seconds), s.prompt_tokens.load(), s.output_tokens.load(),
      s.reused_tokens.load()));
  terminal->Line(absl::StrCat("codes: ", Counts(s.codes())));
  if (!s.ends().empty()) terminal->Line(absl::StrCat("ends: ", Counts(s.ends())));
  PrintNotes(options, run, terminal);
}

std::string LoadReportJson(const LoadOptions& o, const LoadRun& run) {
  const LoadStats& s = run.stats();
  const double seconds = run.measured_seconds();
  Json json;
  json["load"] = {{"loop", o.open_loop() ? "open" : "closed"},
                  {"users", o.open_loop() ? Json() : Json(o.users)},
                  {"rate", o.open_loop() ? Json(o.rate) : Json()},
                  {"prompt", o.prompt.text()},
                  {"output", o.output.text()},
                  {"turns", o.turns.text()},
                  {"think_seconds", o.think.text()},
                  {"connections", o.connections},
                  {"warm_up_seconds", o.warm_up},
                  {"seed", o.seed}};
  json["measured_seconds"] = seconds;
  for (const Row& row : kRows) json["latency_seconds"][row.key] = Quantiles(s.*row.histogram);
  json["requests"] = {{"started", s.started.load()},
                      {"ok", s.ok.load()},
                      {"failed", s.failed.load()},
                      {"cut", s.cut.load()},
                      {"slow_readers", s.slow.load()},
                      {"ended_by_client", s.ended_here.load()},
                      {"never_started", run.never_started()},
                      {"per_second", PerSecond(s.started, seconds)}};
  json["tokens"] = {{"prompt", s.prompt_tokens.load()},
                    {"output", s.output_tokens.load()},
                    {"reused", s.reused_tokens.load()},
                    {"output_per_second", PerSecond(s.tokens_in_time, seconds)}};
  json["codes"] = s.codes();
  json["ends"] = s.ends();
  json["conversations_left"] = run.conversations_left();
  return json.dump();
}

}  // namespace skein::client
