#include "client/evaluate_items.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "engine/base/check.h"
#include "nlohmann/json.hpp"

namespace skein::client {
namespace {

using Json = nlohmann::json;

absl::Status InLine(int64_t line, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("line ", line, ": ", what));
}

// Calls each(object, line number) for every line that is not empty.
template <typename Each>
absl::Status ForEachObject(absl::string_view lines, Each each) {
  int64_t number = 0;
  for (absl::string_view line : absl::StrSplit(lines, '\n')) {
    ++number;
    line = absl::StripAsciiWhitespace(line);
    if (line.empty()) continue;
    const Json object = Json::parse(line.begin(), line.end(), nullptr, /*allow_exceptions=*/false);
    if (!object.is_object()) return InLine(number, "is not a JSON object");
    SKEIN_RETURN_IF_ERROR(each(object, number));
  }
  return absl::OkStatus();
}

std::optional<std::string> Text(const Json& object, const char* key) {
  const auto it = object.find(key);
  if (it == object.end() || !it->is_string()) return std::nullopt;
  return it->get<std::string>();
}

std::optional<std::vector<std::string>> Texts(const Json& object, const char* key) {
  const auto it = object.find(key);
  if (it == object.end() || !it->is_array()) return std::nullopt;
  std::vector<std::string> out;
  for (const Json& text : *it) {
    if (!text.is_string()) return std::nullopt;
    out.push_back(text.get<std::string>());
  }
  return out;
}

// A number, or a number as text, as HellaSwag has it.
std::optional<int64_t> Index(const Json& object, const char* key) {
  const auto it = object.find(key);
  if (it == object.end()) return std::nullopt;
  if (it->is_number_integer()) return it->get<int64_t>();
  int64_t value = 0;
  if (it->is_string() && absl::SimpleAtoi(it->get<std::string>(), &value)) return value;
  return std::nullopt;
}

// "[header] Some text [title] more": marks of the scraped part of HellaSwag.
std::string CleanHellaSwag(std::string text) {
  text = absl::StrReplaceAll(absl::StripAsciiWhitespace(text), {{" [title]", ". "}});
  for (size_t open; (open = text.find('[')) != std::string::npos;) {
    const size_t close = text.find(']', open);
    if (close == std::string::npos) break;
    text.erase(open, close - open + 1);
  }
  return absl::StrReplaceAll(text, {{"  ", " "}});
}

std::string Capitalized(std::string text) {
  absl::AsciiStrToLower(&text);
  if (!text.empty()) text[0] = absl::ascii_toupper(static_cast<unsigned char>(text[0]));
  return text;
}

EvaluationItem HellaSwag(const Json& object, std::vector<std::string> endings) {
  EvaluationItem item;
  item.prompt = CleanHellaSwag(absl::StrCat(Text(object, "activity_label").value_or(""), ": ",
                                            Text(object, "ctx_a").value_or(""), " ",
                                            Capitalized(Text(object, "ctx_b").value_or(""))));
  for (std::string& ending : endings)
    item.choices.push_back(absl::StrCat(" ", CleanHellaSwag(std::move(ending))));
  return item;
}

absl::StatusOr<EvaluationItem> ChoiceOf(const Json& object, int64_t line) {
  EvaluationItem item;
  std::optional<int64_t> answer = Index(object, "label");
  if (const auto choices = Texts(object, "choices")) {
    const auto prompt = Text(object, "prompt");
    if (!prompt.has_value()) return InLine(line, "has \"choices\" and no \"prompt\"");
    item.prompt = *prompt;
    item.choices = *choices;
    answer = Index(object, "answer");
  } else if (auto endings = Texts(object, "endings")) {
    item = HellaSwag(object, *std::move(endings));
  } else if (const auto goal = Text(object, "goal")) {
    item.prompt = absl::StrCat("Question: ", *goal, "\nAnswer:");
    for (const char* key : {"sol1", "sol2"})
      item.choices.push_back(absl::StrCat(" ", Text(object, key).value_or("")));
  } else {
    return InLine(line, "has neither \"choices\" nor \"endings\" nor \"goal\"");
  }
  if (item.choices.size() < 2) return InLine(line, "has fewer than two choices");
  for (const std::string& choice : item.choices) {
    if (absl::StripAsciiWhitespace(choice).empty()) return InLine(line, "has an empty choice");
  }
  if (!answer.has_value() || *answer < 0 || *answer >= static_cast<int64_t>(item.choices.size())) {
    return InLine(line, "does not say which choice is right (\"answer\" or \"label\", from 0)");
  }
  item.answer = static_cast<int32_t>(*answer);
  return item;
}

// " = Title = ", not " = = Section = = ".
bool IsTitle(absl::string_view line) {
  line = absl::StripAsciiWhitespace(line);
  return absl::StartsWith(line, "= ") && absl::EndsWith(line, " =") && line.size() > 4 &&
         !absl::StartsWith(line, "= =");
}

// "( text )" -> "(text)"; the marks are paired from left to right.
std::string Tighten(const std::string& text, char open, char close) {
  std::string out;
  size_t at = 0;
  for (;;) {
    const size_t begin = text.find(open, at);
    const size_t end = begin == std::string::npos ? begin : text.find(close, begin + 1);
    if (end == std::string::npos) break;
    out.append(text, at, begin - at);
    const absl::string_view inside =
        absl::StripAsciiWhitespace(absl::string_view(text).substr(begin + 1, end - begin - 1));
    absl::StrAppend(&out, absl::string_view(&open, 1), inside, absl::string_view(&close, 1));
    at = end + 1;
  }
  return out.append(text, at);
}

}  // namespace

absl::StatusOr<std::vector<EvaluationItem>> ParseLambada(absl::string_view json_lines) {
  std::vector<EvaluationItem> items;
  SKEIN_RETURN_IF_ERROR(ForEachObject(json_lines, [&](const Json& object, int64_t line) {
    const auto text = Text(object, "text");
    if (!text.has_value()) return InLine(line, "has no \"text\"");
    const size_t space = text->rfind(' ');
    if (space == std::string::npos || space == 0 || space + 1 == text->size())
      return InLine(line, "has no last word after a space");
    items.push_back({text->substr(0, space), {text->substr(space)}, 0});
    return absl::OkStatus();
  }));
  return items;
}

absl::StatusOr<std::vector<EvaluationItem>> ParseChoices(absl::string_view json_lines) {
  std::vector<EvaluationItem> items;
  SKEIN_RETURN_IF_ERROR(ForEachObject(json_lines, [&](const Json& object, int64_t line) {
    absl::StatusOr<EvaluationItem> item = ChoiceOf(object, line);
    if (item.ok()) items.push_back(*std::move(item));
    return item.status();
  }));
  return items;
}

std::string DetokenizeWikiText(std::string text) {
  text = absl::StrReplaceAll(text, {{"s '", "s'"}, {" @-@ ", "-"}, {" @,@ ", ","}, {" @.@ ", "."}});
  for (const char* mark : {":", ";", ".", "!", "?", ","}) {
    text = absl::StrReplaceAll(text, {{absl::StrCat(" ", mark, " "), absl::StrCat(mark, " ")}});
  }
  for (const char* pair : {"()", "[]", "{}", "\"\"", "''"}) text = Tighten(text, pair[0], pair[1]);
  for (const auto& [from, to] :
       std::vector<std::pair<const char*, const char*>>{{"= = = =", "===="},
                                                        {"= = =", "==="},
                                                        {"= =", "=="},
                                                        {" \xC2\xB0 ", "\xC2\xB0"},
                                                        {" \n", "\n"},
                                                        {"\n ", "\n"},
                                                        {" N ", " 1 "},
                                                        {" 's", "'s"}}) {
    text = absl::StrReplaceAll(text, {{from, to}});
  }
  return text;
}

std::vector<EvaluationDocument> ParseWikiText(absl::string_view text) {
  std::vector<std::string> articles;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    if (articles.empty() || IsTitle(line)) articles.emplace_back();
    absl::StrAppend(&articles.back(), line, "\n");
  }
  articles.back().pop_back();  // no line break follows the last piece
  std::vector<EvaluationDocument> documents;
  for (std::string& article : articles) {
    if (absl::StripAsciiWhitespace(article).empty()) continue;
    EvaluationDocument document;
    document.words = CountWords(article);
    document.bytes = static_cast<int64_t>(article.size());
    document.text = DetokenizeWikiText(std::move(article));
    documents.push_back(std::move(document));
  }
  return documents;
}

int64_t CountWords(absl::string_view text) {
  int64_t gaps = 0;
  bool in_gap = false;
  for (const char c : text) {
    const bool space = absl::ascii_isspace(static_cast<unsigned char>(c));
    gaps += space && !in_gap;
    in_gap = space;
  }
  return gaps + 1;
}

int64_t CountCharacters(absl::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

double Loss::PerToken() const { return -log_likelihood / static_cast<double>(tokens); }
double Loss::Perplexity() const { return std::exp(PerToken()); }
double Loss::WordPerplexity() const {
  return std::exp(-log_likelihood / static_cast<double>(words));
}
double Loss::BytePerplexity() const {
  return std::exp(-log_likelihood / static_cast<double>(bytes));
}
double Loss::BitsPerByte() const {
  return -log_likelihood / static_cast<double>(bytes) / std::log(2.0);
}

}  // namespace skein::client
