#pragma once
// What `skein evaluate` scores, made from files: pieces of text after a prompt, and the numbers
// that come out of their log-probabilities. Pure; the definitions are those of
// lm-evaluation-harness, so that figures compare.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace skein::client {

// One question: each of `choices` is scored after `prompt`.
struct EvaluationItem {
  std::string prompt;
  std::vector<std::string> choices;
  int32_t answer = 0;  // index of the right one
};

// A document that is scored as a whole, and what its loss is divided by.
struct EvaluationDocument {
  std::string text;
  int64_t words = 0, bytes = 0;  // of the text as it was before detokenisation
};

// JSON lines with a "text": the last word (after the last space) is asked for.
absl::StatusOr<std::vector<EvaluationItem>> ParseLambada(absl::string_view json_lines);

// JSON lines, each of one of these forms:
//   {"prompt": "...", "choices": ["...", ...], "answer": 0}
//   HellaSwag: {"activity_label": "...", "ctx_a": "...", "ctx_b": "...", "endings": [...], "label":
//   0} PIQA:      {"goal": "...", "sol1": "...", "sol2": "...", "label": 0}
// A choice of the first form is scored as it stands: begin it with a space where one belongs there.
absl::StatusOr<std::vector<EvaluationItem>> ParseChoices(absl::string_view json_lines);

// WikiText as published, cut into articles (headings " = Title = "), each detokenised.
std::vector<EvaluationDocument> ParseWikiText(absl::string_view text);
// "film , he 's" -> "film, he's": undoes the spacing of WikiText.
std::string DetokenizeWikiText(std::string text);
// Runs of what is not white space, as Python's re.split(r"\s+") counts: a text that begins or ends
// with white space has an empty word there.
int64_t CountWords(absl::string_view text);
// Code points of UTF-8.
int64_t CountCharacters(absl::string_view text);

struct Loss {
  double log_likelihood = 0;
  int64_t tokens = 0, words = 0, bytes = 0;

  double PerToken() const;    // nats
  double Perplexity() const;  // of a token
  double WordPerplexity() const;
  double BytePerplexity() const;
  double BitsPerByte() const;
};

}  // namespace skein::client
