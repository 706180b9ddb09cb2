#pragma once
// Line charts as SVG text: enough for the article's pictures, with no library.

#include <map>
#include <string>
#include <vector>

namespace skein::article {

struct Series {
  std::string name;
  std::vector<std::pair<double, double>> points;  // x ascending
};

struct Chart {
  std::string title = {}, x_label = {}, y_label = {};
  bool log_x = false, log_y = false;
  std::map<double, std::string> x_ticks = {};  // empty: round numbers
  bool from_zero = true;                       // of a linear y axis
  std::vector<Series> series = {};
};

// A whole SVG file. Axes span the points; at least one series has a point.
std::string DrawChart(const Chart& chart);

}  // namespace skein::article
