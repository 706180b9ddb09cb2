#include "bench/article/report.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/article/svg.h"
#include "bench/write_json.h"
#include "engine/base/check.h"
#include "engine/base/file.h"

namespace skein::article {
namespace {

using nlohmann::json;

std::string ContextName(int64_t context) {
  return context >= 1024 ? absl::StrCat(context / 1024, "K") : absl::StrCat(context);
}

std::string Show(const Cell& cell, const char* format, double scale) {
  char text[64];
  std::snprintf(text, sizeof(text), format, cell.value * scale);
  return cell.missing.empty() ? text : cell.missing;
}

std::string Ratio(const Cell& a, const Cell& b) {
  return a.missing.empty() && b.missing.empty() ? absl::StrFormat("%.2f", a.value / b.value) : "-";
}

std::string TimeTable(const Speed& speed) {
  std::string out =
      "## 1. Time per token\n\nDecode steps of one conversation, median. The transformer's cache "
      "holds random values at every length; Skein has read that many tokens (unless marked *: then "
      "it decodes from the state after the longest context that it read).\n\n"
      "| context | Skein, ms | transformer, ms | transformer / Skein |\n|---|---|---|---|\n";
  for (const ContextRow& row : speed.contexts) {
    absl::StrAppendFormat(&out, "| %s%s | %s | %s | %s |\n", ContextName(row.context),
                          row.simulated ? "*" : "", Show(row.skein_seconds, "%.2f", 1e3),
                          Show(row.transformer_seconds, "%.2f", 1e3),
                          Ratio(row.transformer_seconds, row.skein_seconds));
  }
  absl::StrAppendFormat(
      &out,
      "\nFloors at %.1f GB/s, measured in this run: Skein %.2f ms (weights and state), the "
      "transformer %.2f ms for its weights alone; its cache comes on top.\n\n![time](time.svg)\n\n",
      speed.read_bytes_per_second / 1e9, speed.skein_floor_seconds * 1e3,
      speed.transformer_weight_bytes / speed.read_bytes_per_second * 1e3);
  return out;
}

std::string MemoryTable(const Speed& speed) {
  std::string out =
      "## 2. Memory of one conversation\n\nBytes by which the process's resident memory grew when "
      "it was made.\n\n| context | Skein's state, MB | key-value cache, MB | cache / state |\n"
      "|---|---|---|---|\n";
  for (const ContextRow& row : speed.contexts) {
    absl::StrAppendFormat(&out, "| %s | %s | %s | %s |\n", ContextName(row.context),
                          Show(row.skein_bytes, "%.2f", 1e-6),
                          Show(row.transformer_bytes, "%.1f", 1e-6),
                          Ratio(row.transformer_bytes, row.skein_bytes));
  }
  return out + "\n![memory](memory.svg)\n\n";
}

std::string BatchTable(const Speed& speed) {
  std::string out =
      "## 4. Tokens per second in a batch\n\nAll conversations decode at the same context; states "
      "and caches as in the first table.\n\n| context | conversations | Skein, tokens/s | "
      "transformer, tokens/s | Skein / transformer |\n|---|---|---|---|---|\n";
  for (const BatchRow& row : speed.batches) {
    absl::StrAppendFormat(&out, "| %s | %d | %s | %s | %s |\n", ContextName(row.context), row.batch,
                          Show(row.skein, "%.1f", 1), Show(row.transformer, "%.1f", 1),
                          Ratio(row.skein, row.transformer));
  }
  return out + "\n![batches](batches.svg)\n\n";
}

std::string Percent(const Accuracy& a) {
  return absl::StrFormat("%.1f %% of %d", 100 * a.rate(), a.asked);
}

std::string QualityTable(const Quality& quality) {
  std::string out = absl::StrCat(
      "## 3. Quality\n\nBoth learn the same windows in the same order: ", quality.description,
      ". The same optimiser (AdamW, cosine, no dropout); each model has its own learning rate and "
      "the "
      "type of products in which it trains faster here.\n\n|");
  const auto row = [&](const std::string& name, const auto& value) {
    absl::StrAppend(&out, "| ", name, " |");
    for (const Learned& model : quality.models) absl::StrAppend(&out, " ", value(model), " |");
    absl::StrAppend(&out, "\n");
  };
  for (const Learned& model : quality.models) absl::StrAppend(&out, " | ", model.name);
  absl::StrAppend(&out, " |\n|---|---|---|\n");
  row("parameters (text, demo)",
      [](const Learned& m) { return absl::StrCat(m.parameters, ", ", m.demo_parameters); });
  row("products in", [](const Learned& m) { return m.compute; });
  row("validation loss, nats a byte",
      [](const Learned& m) { return absl::StrFormat("%.4f", m.curve.back().loss); });
  row("seconds of training",
      [](const Learned& m) { return absl::StrFormat("%.1f", m.curve.back().seconds); });
  row("last word of a passage", [](const Learned& m) { return Percent(m.last_word); });
  row("the same, words that the passage has held before",
      [](const Learned& m) { return Percent(m.last_word_repeated); });
  row("recall demo: questions answered right", [](const Learned& m) { return Percent(m.recall); });
  row("recall demo: seconds of training",
      [](const Learned& m) { return absl::StrFormat("%.1f", m.demo_seconds); });
  return out +
         "\nLast words: all letters must be the most probable ones, each after the right ones "
         "before it. Recall: questions about names and numbers that no dialogue of the training "
         "has held.\n\n![loss over tokens](loss_tokens.svg)\n\n![loss over "
         "seconds](loss_seconds.svg)\n\n";
}

json ToJson(const Cell& cell) {
  return cell.missing.empty() ? json(cell.value) : json(cell.missing);
}

json ToJson(const Speed& speed) {
  json result = {{"skein", speed.skein},
                 {"transformer", speed.transformer},
                 {"read_bytes_per_second", speed.read_bytes_per_second},
                 {"skein_floor_seconds", speed.skein_floor_seconds},
                 {"transformer_weight_bytes", speed.transformer_weight_bytes}};
  for (const ContextRow& row : speed.contexts) {
    result["contexts"].push_back({{"context", row.context},
                                  {"simulated", row.simulated},
                                  {"skein_seconds", ToJson(row.skein_seconds)},
                                  {"transformer_seconds", ToJson(row.transformer_seconds)},
                                  {"skein_bytes", ToJson(row.skein_bytes)},
                                  {"transformer_bytes", ToJson(row.transformer_bytes)}});
  }
  for (const BatchRow& row : speed.batches) {
    result["batches"].push_back({{"context", row.context},
                                 {"conversations", row.batch},
                                 {"skein_tokens_per_second", ToJson(row.skein)},
                                 {"transformer_tokens_per_second", ToJson(row.transformer)}});
  }
  return result;
}

json ToJson(const Accuracy& a) { return {{"asked", a.asked}, {"right", a.right}}; }

json ToJson(const Quality& quality) {
  json result = {{"description", quality.description}};
  for (const Learned& model : quality.models) {
    json curve = json::array();
    for (const CurvePoint& p : model.curve)
      curve.push_back({{"tokens", p.tokens}, {"seconds", p.seconds}, {"loss", p.loss}});
    result["models"].push_back({{"name", model.name},
                                {"compute", model.compute},
                                {"parameters", model.parameters},
                                {"demo_parameters", model.demo_parameters},
                                {"curve", curve},
                                {"last_word", ToJson(model.last_word)},
                                {"last_word_repeated", ToJson(model.last_word_repeated)},
                                {"recall", ToJson(model.recall)},
                                {"demo_seconds", model.demo_seconds}});
  }
  return result;
}

absl::Status WriteContextChart(const Speed& speed, const std::string& path, Chart chart,
                               Cell ContextRow::*skein, Cell ContextRow::*transformer,
                               double scale) {
  chart.x_label = "context, tokens";
  chart.log_x = chart.log_y = true;
  chart.series = {{"Skein, RWKV-7", {}}, {"transformer", {}}};
  for (const ContextRow& row : speed.contexts) {
    chart.x_ticks[static_cast<double>(row.context)] = ContextName(row.context);
    for (const auto& [cell, series] : {std::pair{&(row.*skein), &chart.series[0]},
                                       std::pair{&(row.*transformer), &chart.series[1]}}) {
      if (cell->missing.empty())
        series->points.emplace_back(static_cast<double>(row.context), cell->value * scale);
    }
  }
  return base::WriteFileAtomically(path, DrawChart(chart));
}

absl::Status WriteSpeedCharts(const Speed& speed, const std::string& folder) {
  SKEIN_RETURN_IF_ERROR(
      WriteContextChart(speed, folder + "/time.svg", {.title = "Time per token", .y_label = "ms"},
                        &ContextRow::skein_seconds, &ContextRow::transformer_seconds, 1e3));
  SKEIN_RETURN_IF_ERROR(WriteContextChart(
      speed, folder + "/memory.svg", {.title = "Memory of one conversation", .y_label = "MB"},
      &ContextRow::skein_bytes, &ContextRow::transformer_bytes, 1e-6));
  Chart chart{.title = "Tokens per second in a batch",
              .x_label = "conversations",
              .y_label = "tokens/s",
              .log_x = true,
              .log_y = true};
  for (const BatchRow& row : speed.batches) {
    chart.x_ticks[static_cast<double>(row.batch)] = absl::StrCat(row.batch);
    for (const bool skein : {true, false}) {
      const std::string name =
          absl::StrCat(skein ? "Skein" : "transformer", " at ", ContextName(row.context));
      auto series = std::find_if(chart.series.begin(), chart.series.end(),
                                 [&](const Series& s) { return s.name == name; });
      if (series == chart.series.end()) series = chart.series.insert(series, {name, {}});
      const Cell& cell = skein ? row.skein : row.transformer;
      if (cell.missing.empty())
        series->points.emplace_back(static_cast<double>(row.batch), cell.value);
    }
  }
  return base::WriteFileAtomically(folder + "/batches.svg", DrawChart(chart));
}

absl::Status WriteLossCharts(const Quality& quality, const std::string& folder) {
  for (const bool by_tokens : {true, false}) {
    Chart chart{.title = "Validation loss, nats a byte",
                .x_label = by_tokens ? "tokens of training" : "seconds of training",
                .from_zero = false};
    for (const Learned& model : quality.models) {
      Series series{model.name, {}};
      for (const CurvePoint& p : model.curve)
        series.points.emplace_back(by_tokens ? static_cast<double>(p.tokens) : p.seconds, p.loss);
      chart.series.push_back(std::move(series));
    }
    SKEIN_RETURN_IF_ERROR(base::WriteFileAtomically(
        folder + (by_tokens ? "/loss_tokens.svg" : "/loss_seconds.svg"), DrawChart(chart)));
  }
  return absl::OkStatus();
}

}  // namespace

std::string Page(const Article& article) {
  std::string out =
      absl::StrCat("# A recurrent state beside a key-value cache\n\n", article.machine, "\n\n");
  if (article.has_speed) {
    absl::StrAppend(
        &out, "* Skein: ", article.speed.skein, "\n* Transformer: ", article.speed.transformer,
        ", LibTorch, fused attention\n\n", TimeTable(article.speed), MemoryTable(article.speed));
  }
  if (article.has_quality) absl::StrAppend(&out, QualityTable(article.quality));
  if (article.has_speed) absl::StrAppend(&out, BatchTable(article.speed));
  return out;
}

absl::Status WriteArticle(const Article& article, const std::string& folder) {
  SKEIN_RETURN_IF_ERROR(base::MakeFolder(folder));
  json result = {{"machine", article.machine}};
  if (article.has_speed) {
    result["speed"] = ToJson(article.speed);
    SKEIN_RETURN_IF_ERROR(WriteSpeedCharts(article.speed, folder));
  }
  if (article.has_quality) {
    result["quality"] = ToJson(article.quality);
    SKEIN_RETURN_IF_ERROR(WriteLossCharts(article.quality, folder));
  }
  SKEIN_RETURN_IF_ERROR(base::WriteFileAtomically(folder + "/article.md", Page(article)));
  if (bench::WriteJson(folder + "/article.json", result) == 0) return absl::OkStatus();
  return absl::UnavailableError("no results were written");
}

}  // namespace skein::article
