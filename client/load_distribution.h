#pragma once
// Random numbers as a flag describes them: lengths in tokens, turns, seconds.

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace skein::client {

// Immutable and cheap to copy.
class Distribution {
 public:
  // "64", "uniform:16,256", "lognormal:MEDIAN,SIGMA" or "lognormal:MEDIAN,SIGMA,MAX" (sigma of the
  // logarithm), "file:PATH" (numbers between white space, drawn with equal chance). No value may be
  // negative.
  static absl::StatusOr<Distribution> Parse(absl::string_view text);
  static Distribution Fixed(double value);

  double Draw(std::mt19937_64* random) const;
  // Rounded, at least `least`.
  int64_t DrawInt(std::mt19937_64* random, int64_t least) const;
  // It never gives anything else than this.
  bool IsAlways(double value) const;
  // As it was written.
  const std::string& text() const { return text_; }

 private:
  enum class Kind { kFixed, kUniform, kLognormal, kSamples };
  explicit Distribution(std::string text) : text_(std::move(text)) {}

  std::string text_;
  Kind kind_ = Kind::kFixed;
  double a_ = 0, b_ = 0;  // value; least, most; logarithm of the median, sigma
  double max_ = 0;        // of kLognormal
  std::shared_ptr<const std::vector<double>> samples_;  // shared by copies
};

}  // namespace skein::client
