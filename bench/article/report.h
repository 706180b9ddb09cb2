#pragma once
// The four tables as text, JSON and pictures.

#include <string>

#include "absl/status/status.h"
#include "bench/article/quality.h"
#include "bench/article/speed.h"

namespace skein::article {

struct Article {
  std::string machine;  // one line
  bool has_speed = false, has_quality = false;
  Speed speed;
  Quality quality;
};

// Markdown; the pictures are those that WriteArticle puts beside it.
std::string Page(const Article& article);
// article.md, article.json and the pictures, into `folder`.
absl::Status WriteArticle(const Article& article, const std::string& folder);

}  // namespace skein::article
