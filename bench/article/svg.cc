#include "bench/article/svg.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "engine/base/check.h"

namespace skein::article {
namespace {

constexpr double kWidth = 720, kHeight = 430, kLeft = 80, kRight = 24, kTop = 48, kBottom = 64;
constexpr const char* kColours[] = {"#0b6e8f", "#c8553d", "#5b8c3a", "#7a4fa3"};

std::string Escaped(const std::string& text) {
  return absl::StrReplaceAll(text, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}});
}

// 1500 -> "1.5K"; enough digits to tell neighbouring ticks apart.
std::string TickName(double value) {
  const double size = std::abs(value);
  if (size >= 1e9) return absl::StrFormat("%gG", value / 1e9);
  if (size >= 1e6) return absl::StrFormat("%gM", value / 1e6);
  if (size >= 1e3) return absl::StrFormat("%gK", value / 1e3);
  return absl::StrFormat("%g", value);
}

class Axis {
 public:
  Axis(double low, double high, bool log, double begin, double end)
      : log_(log), begin_(begin), end_(end) {
    if (log) {
      SKEIN_CHECK(low > 0);
      low_ = std::log10(low);
      high_ = std::log10(high);
      if (high_ - low_ < 0.1) {
        low_ -= 0.5;
        high_ += 0.5;
      }
    } else {
      low_ = low;
      high_ = high > low ? high : low + 1;
    }
  }

  double Place(double value) const {
    const double v = log_ ? std::log10(value) : value;
    return begin_ + (v - low_) / (high_ - low_) * (end_ - begin_);
  }

  std::vector<double> Ticks() const {
    std::vector<double> ticks;
    if (log_) {
      // 1, 2 and 5 of each power of ten, or the powers alone when there are many.
      const bool few = high_ - low_ < 2.5;
      for (int power = static_cast<int>(std::floor(low_)); power <= high_; ++power) {
        for (const int digit : {1, 2, 5}) {
          if (digit > 1 && !few) break;
          const double tick = digit * std::pow(10.0, power);
          const double at = std::log10(tick);
          if (at >= low_ - 1e-9 && at <= high_ + 1e-9) ticks.push_back(tick);
        }
      }
      return ticks;
    }
    const double rough = (high_ - low_) / 6, power = std::pow(10.0, std::floor(std::log10(rough)));
    const double digit = rough / power;
    const double step = power * (digit > 5 ? 10 : (digit > 2 ? 5 : (digit > 1 ? 2 : 1)));
    for (double i = std::ceil(low_ / step - 1e-9); i * step <= high_ + 1e-9 * step; ++i)
      ticks.push_back(i * step);
    return ticks;
  }

 private:
  const bool log_;
  const double begin_, end_;
  double low_ = 0, high_ = 1;
};

Axis MakeAxis(const Chart& chart, bool x) {
  double low = INFINITY, high = -INFINITY;
  for (const Series& series : chart.series) {
    for (const auto& point : series.points) {
      low = std::min(low, x ? point.first : point.second);
      high = std::max(high, x ? point.first : point.second);
    }
  }
  SKEIN_CHECK(low <= high);
  if (x) return {low, high, chart.log_x, kLeft, kWidth - kRight};
  if (chart.log_y) return {low / 1.3, high * 1.3, true, kHeight - kBottom, kTop};
  const double room = 0.06 * (high - low);
  return {chart.from_zero ? std::min(0.0, low) : low - room, high + room, false, kHeight - kBottom,
          kTop};
}

void Text(std::string* out, double x, double y, const std::string& anchor, const std::string& text,
          const std::string& more = "") {
  absl::StrAppendFormat(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\"%s>%s</text>\n", x, y,
                        anchor, more, Escaped(text));
}

void DrawAxes(const Chart& chart, const Axis& x, const Axis& y, std::string* out) {
  const double bottom = kHeight - kBottom, right = kWidth - kRight;
  for (const double tick : y.Ticks()) {
    const double at = y.Place(tick);
    absl::StrAppendFormat(
        out, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"#e2e2e2\"/>\n", kLeft,
        at, right, at);
    Text(out, kLeft - 8, at + 4, "end", TickName(tick));
  }
  std::map<double, std::string> x_ticks = chart.x_ticks;
  if (x_ticks.empty())
    for (const double tick : x.Ticks()) x_ticks[tick] = TickName(tick);
  for (const auto& [tick, name] : x_ticks) {
    const double at = x.Place(tick);
    absl::StrAppendFormat(
        out, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"#888\"/>\n", at,
        bottom, at, bottom + 5);
    Text(out, at, bottom + 20, "middle", name);
  }
  absl::StrAppendFormat(out, "<path d=\"M%.1f %.1fV%.1fH%.1f\" fill=\"none\" stroke=\"#444\"/>\n",
                        kLeft, kTop, bottom, right);
  Text(out, (kLeft + right) / 2, kHeight - 18, "middle", chart.x_label);
  Text(out, 20, (kTop + bottom) / 2, "middle", chart.y_label,
       absl::StrFormat(" transform=\"rotate(-90 20 %.1f)\"", (kTop + bottom) / 2));
}

void DrawSeries(const Series& series, const char* colour, const Axis& x, const Axis& y,
                std::string* out) {
  std::string path;
  for (const auto& [px, py] : series.points) {
    const double at_x = x.Place(px), at_y = y.Place(py);
    absl::StrAppendFormat(&path, "%s%.1f %.1f", path.empty() ? "M" : "L", at_x, at_y);
    absl::StrAppendFormat(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\" fill=\"%s\"/>\n", at_x,
                          at_y, colour);
  }
  absl::StrAppendFormat(out, "<path d=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"2\"/>\n",
                        path, colour);
}

}  // namespace

std::string DrawChart(const Chart& chart) {
  const Axis x = MakeAxis(chart, true), y = MakeAxis(chart, false);
  std::string out = absl::StrFormat(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" viewBox=\"0 0 %.0f "
      "%.0f\" font-family=\"sans-serif\" font-size=\"13\" fill=\"#222\">\n"
      "<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n",
      kWidth, kHeight, kWidth, kHeight);
  Text(&out, kLeft, 20, "start", chart.title, " font-size=\"15\" font-weight=\"bold\"");
  DrawAxes(chart, x, y, &out);
  double legend = kLeft;
  for (size_t i = 0; i < chart.series.size(); ++i) {
    const char* colour = kColours[i % std::size(kColours)];
    DrawSeries(chart.series[i], colour, x, y, &out);
    absl::StrAppendFormat(&out,
                          "<rect x=\"%.1f\" y=\"31\" width=\"18\" height=\"4\" fill=\"%s\"/>\n",
                          legend, colour);
    Text(&out, legend + 24, 38, "start", chart.series[i].name);
    legend += 24 + 8.0 * static_cast<double>(chart.series[i].name.size()) + 24;
  }
  return out + "</svg>\n";
}

}  // namespace skein::article
