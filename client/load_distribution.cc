#include "client/load_distribution.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "engine/base/check.h"
#include "engine/base/file.h"

namespace skein::client {
namespace {

constexpr double kLargest = 1e9;

absl::StatusOr<double> Number(absl::string_view text) {
  double value = 0;
  if (!absl::SimpleAtod(text, &value) || !(value >= 0 && value <= kLargest)) {
    return absl::InvalidArgumentError(absl::StrCat("'", text, "' is not a number from 0 to 1e9"));
  }
  return value;
}

absl::StatusOr<std::vector<double>> Numbers(absl::string_view text) {
  std::vector<double> values;
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    SKEIN_ASSIGN_OR_RETURN(const double value, Number(part));
    values.push_back(value);
  }
  return values;
}

absl::StatusOr<std::vector<double>> ReadSamples(const std::string& path) {
  SKEIN_ASSIGN_OR_RETURN(const std::string text, base::ReadFile(path));
  std::vector<double> samples;
  for (const absl::string_view word :
       absl::StrSplit(text, absl::ByAnyChar(" \t\r\n"), absl::SkipEmpty())) {
    const absl::StatusOr<double> value = Number(word);
    if (!value.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": ", value.status().message()));
    }
    samples.push_back(*value);
  }
  if (samples.empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": holds no numbers"));
  return samples;
}

}  // namespace

Distribution Distribution::Fixed(double value) {
  Distribution d{absl::StrCat(value)};
  d.a_ = value;
  return d;
}

absl::StatusOr<Distribution> Distribution::Parse(absl::string_view text) {
  Distribution d{std::string(text)};
  absl::string_view rest = text;
  if (absl::ConsumePrefix(&rest, "file:")) {
    d.kind_ = Kind::kSamples;
    SKEIN_ASSIGN_OR_RETURN(std::vector<double> samples, ReadSamples(std::string(rest)));
    d.samples_ = std::make_shared<const std::vector<double>>(std::move(samples));
    return d;
  }
  if (absl::ConsumePrefix(&rest, "uniform:")) {
    SKEIN_ASSIGN_OR_RETURN(const std::vector<double> ends, Numbers(rest));
    if (ends.size() != 2 || ends[0] > ends[1])
      return absl::InvalidArgumentError(absl::StrCat("'", text, "' is not uniform:LEAST,MOST"));
    d.kind_ = Kind::kUniform;
    d.a_ = ends[0];
    d.b_ = ends[1];
    return d;
  }
  if (absl::ConsumePrefix(&rest, "lognormal:")) {
    SKEIN_ASSIGN_OR_RETURN(const std::vector<double> parts, Numbers(rest));
    if (parts.size() < 2 || parts.size() > 3 || parts[0] == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", text, "' is not lognormal:MEDIAN,SIGMA[,MAX]"));
    }
    d.kind_ = Kind::kLognormal;
    d.a_ = std::log(parts[0]);
    d.b_ = parts[1];
    d.max_ = parts.size() == 3 ? parts[2] : kLargest;
    return d;
  }
  const absl::StatusOr<double> value = Number(text);
  if (!value.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", text, "' is neither a number nor uniform:, lognormal: or file:"));
  }
  d.a_ = *value;
  return d;
}

double Distribution::Draw(std::mt19937_64* random) const {
  switch (kind_) {
    case Kind::kFixed:
      return a_;
    case Kind::kUniform:
      return std::uniform_real_distribution<double>(a_, b_)(*random);
    case Kind::kLognormal:
      return std::min(max_, std::lognormal_distribution<double>(a_, b_)(*random));
    case Kind::kSamples:
      return (*samples_)[std::uniform_int_distribution<size_t>(0, samples_->size() - 1)(*random)];
  }
  return a_;
}

int64_t Distribution::DrawInt(std::mt19937_64* random, int64_t least) const {
  // Whole numbers of a range have equal chances, its ends too.
  if (kind_ == Kind::kUniform) {
    const auto from = static_cast<int64_t>(std::ceil(a_)), to = static_cast<int64_t>(b_);
    return std::max(least, std::uniform_int_distribution<int64_t>(std::min(from, to), to)(*random));
  }
  return std::max(least, static_cast<int64_t>(std::llround(Draw(random))));
}

bool Distribution::IsAlways(double value) const { return kind_ == Kind::kFixed && a_ == value; }

}  // namespace skein::client
