#include "engine/base/strict_yaml.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <exception>
#include <memory>
#include <optional>
#include <set>
#include <sstream>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "engine/base/check.h"
#include "engine/base/file.h"
#include "engine/base/units.h"
#include "engine/base/utf8.h"

namespace skein::base {

// One value of a document: its dotted key, the line of the key and either a text or a list, of
// texts or of maps.
struct YamlSchema::Entry {
  enum Kind { kText, kList, kMap, kNothing };
  Kind kind;
  std::string key;
  int line;
  std::string text;
  std::vector<std::string> list;
  std::vector<std::vector<Entry>> records;
};

namespace {

absl::Status AtLine(absl::string_view name, int line, absl::string_view message) {
  return absl::InvalidArgumentError(absl::StrCat(name, ":", line, ": ", message));
}

}  // namespace

// Turns the parser's events into entries in the order of the document. Maps nest, lists hold plain
// values or maps, and what configs do not need (aliases, tags, lists of lists) is refused. After
// the first error all events are ignored.
class EntryReader : public YAML::EventHandler {
 public:
  using Entry = YamlSchema::Entry;

  explicit EntryReader(absl::string_view name) : name_(name) {}

  const absl::Status& status() const { return status_; }
  std::vector<Entry> TakeEntries() { return std::move(entries_); }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (documents_++ > 0) Fail(mark, "a second document; a config is one document");
  }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    Value(mark, "?", anchor, Entry::kNothing, "");
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    Fail(mark, "aliases (*name) are not supported; write the value out");
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    Value(mark, tag, anchor, Entry::kText, value);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    if (in_list_) return Fail(mark, "a list inside a list");
    Value(mark, tag, anchor, Entry::kList, "");
    in_list_ = true;
  }
  void OnSequenceEnd() override {
    if (status_.ok()) in_list_ = false;
  }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    if (!status_.ok()) return;
    if (in_list_) return StartRecord(mark, tag, anchor);
    if (depth_ > 0) Value(mark, tag, anchor, Entry::kMap, "");
    if (!status_.ok()) return;
    ++depth_;
    prefixes_.push_back(depth_ == 1 ? "" : absl::StrCat(entries_.back().key, "."));
    key_.reset();
  }
  void OnMapEnd() override {
    if (!status_.ok()) return;
    --depth_;
    prefixes_.pop_back();
    key_.reset();
    if (outer_ != nullptr && depth_ == 0) EndRecord();
  }

 private:
  void Fail(const YAML::Mark& mark, absl::string_view message) {
    if (status_.ok()) status_ = AtLine(name_, mark.line + 1, message);
  }

  // A map inside a list is read like a document of its own.
  void StartRecord(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) {
    if (anchor != 0) return Fail(mark, "anchors (&name) are not supported");
    if (!tag.empty() && tag != "?" && tag != "!")
      return Fail(mark, "tags (!name) are not supported");
    if (outer_ != nullptr) return Fail(mark, "a list of maps inside a map of a list");
    if (!entries_.back().list.empty()) return Fail(mark, "a list of both values and maps");
    outer_ = std::make_unique<EntryReader>(name_);
    std::swap(entries_, outer_->entries_);
    std::swap(seen_, outer_->seen_);
    std::swap(prefixes_, outer_->prefixes_);
    std::swap(depth_, outer_->depth_);
    in_list_ = false;
    depth_ = 1;
    prefixes_.push_back("");
  }
  void EndRecord() {
    std::swap(entries_, outer_->entries_);
    std::swap(seen_, outer_->seen_);
    std::swap(prefixes_, outer_->prefixes_);
    std::swap(depth_, outer_->depth_);
    entries_.back().records.push_back(std::move(outer_->entries_));
    outer_.reset();
    in_list_ = true;
  }

  // A key or a value, whichever is next in the innermost map, or an element of the open list.
  void Value(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
             Entry::Kind kind, const std::string& text) {
    if (!status_.ok()) return;
    if (anchor != 0) return Fail(mark, "anchors (&name) are not supported");
    if (!tag.empty() && tag != "?" && tag != "!")
      return Fail(mark, "tags (!name) are not supported");
    if (depth_ == 0) {
      // An empty document has nothing to say.
      if (kind != Entry::kNothing) Fail(mark, "expected keys and values ('key: value')");
    } else if (in_list_) {
      if (kind == Entry::kNothing)
        return Fail(mark, "an empty list element; write \"\" for an empty text");
      if (!entries_.back().records.empty()) return Fail(mark, "a list of both values and maps");
      entries_.back().list.push_back(text);
    } else if (!key_) {
      if (kind != Entry::kText || text.empty()) return Fail(mark, "a key must be a word");
      key_ = std::make_pair(absl::StrCat(prefixes_.back(), text), mark.line + 1);
      if (!seen_.insert(key_->first).second)
        Fail(mark, absl::StrCat("key '", key_->first, "' appears twice"));
    } else {
      entries_.push_back({kind, key_->first, key_->second, text, {}, {}});
      key_.reset();
    }
  }

  const absl::string_view name_;
  absl::Status status_;
  std::vector<Entry> entries_;
  std::set<std::string> seen_;
  std::vector<std::string> prefixes_;               // of the open maps, outermost first
  std::optional<std::pair<std::string, int>> key_;  // read, its value not yet; with its line
  int depth_ = 0;
  int documents_ = 0;
  bool in_list_ = false;
  std::unique_ptr<EntryReader> outer_;  // while a map of a list is read: what is around it
};

namespace {

// yaml-cpp replaces bad UTF-8 in silence and takes byte 4 for the end of the text: both are found
// before it.
absl::Status CheckCharacters(absl::string_view text, absl::string_view name) {
  int line = 1;
  for (size_t i = 0; i < text.size();) {
    const char c = text[i];
    if (c == '\n') ++line;
    if (static_cast<uint8_t>(c) < 0x20 && c != '\n' && c != '\t' && c != '\r') {
      return AtLine(name, line, absl::StrCat("control character ", static_cast<int>(c)));
    }
    const int length =
        Utf8Length(reinterpret_cast<const uint8_t*>(text.data()) + i, text.size() - i);
    if (length <= 0) return AtLine(name, line, "not valid UTF-8");
    i += length;
  }
  return absl::OkStatus();
}

std::string Quote(absl::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    const uint8_t byte = static_cast<uint8_t>(c);
    if (c == '"' || c == '\\') {
      absl::StrAppend(&quoted, "\\", absl::string_view(&c, 1));
    } else if (byte < 0x20 || byte == 0x7F) {
      absl::StrAppend(&quoted, "\\x", absl::Hex(byte, absl::kZeroPad2));
    } else {
      quoted.push_back(c);
    }
  }
  return quoted + "\"";
}

// "[a, b]" of values printed one by one.
template <typename T, typename PrintOne>
std::string PrintList(const std::vector<T>& values, PrintOne print_one) {
  std::vector<std::string> parts;
  for (const T& value : values) parts.push_back(print_one(value));
  return absl::StrCat("[", absl::StrJoin(parts, ", "), "]");
}

// Parses with `parse_one`, checks the range and stores; messages show the limits in the units of
// the value.
template <typename T, typename ParseOne, typename PrintOne>
absl::Status ParseInto(absl::string_view text, const Range<T>& range, T* value, ParseOne parse_one,
                       PrintOne print_one) {
  SKEIN_ASSIGN_OR_RETURN(const T parsed, parse_one(text));
  if (parsed < range.min || parsed > range.max) {
    return absl::InvalidArgumentError(absl::StrCat("'", text, "' is out of range; allowed is ",
                                                   print_one(range.min), " to ",
                                                   print_one(range.max)));
  }
  *value = parsed;
  return absl::OkStatus();
}

std::string PrintInteger(int64_t value) { return absl::StrCat(value); }

// Levenshtein distance.
size_t EditDistance(absl::string_view a, absl::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t substitute = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, substitute}));
    }
  }
  return row[b.size()];
}

}  // namespace

std::string Nearest(absl::string_view word, const std::vector<std::string>& known) {
  std::string nearest;
  size_t best = std::max<size_t>(2, word.size() / 3) + 1;
  for (const std::string& candidate : known) {
    const size_t distance = EditDistance(word, candidate);
    if (distance < best && distance < candidate.size()) {
      best = distance;
      nearest = candidate;
    }
  }
  return nearest;
}

absl::StatusOr<std::vector<YamlSchema::Entry>> YamlSchema::ReadEntries(absl::string_view text,
                                                                       absl::string_view name) {
  SKEIN_RETURN_IF_ERROR(CheckCharacters(text, name));
  EntryReader reader(name);
  try {
    std::istringstream stream{std::string(text)};
    YAML::Parser parser(stream);
    while (reader.status().ok() && parser.HandleNextDocument(reader)) {
    }
  } catch (const YAML::Exception& error) {
    return AtLine(name, error.mark.line + 1, absl::StrCat("not valid YAML: ", error.msg));
  } catch (const std::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": not valid YAML: ", error.what()));
  }
  SKEIN_RETURN_IF_ERROR(reader.status());
  return reader.TakeEntries();
}

void YamlSchema::Add(std::string key, std::string* value, std::string help) {
  fields_.push_back({std::move(key), std::move(help),
                     [value](absl::string_view text, const std::vector<std::string>*) {
                       *value = std::string(text);
                       return absl::OkStatus();
                     },
                     [value] { return Quote(*value); }});
}

void YamlSchema::Add(std::string key, bool* value, std::string help) {
  fields_.push_back(
      {std::move(key), std::move(help),
       [value](absl::string_view text, const std::vector<std::string>*) -> absl::Status {
         if (text != "true" && text != "false") {
           return absl::InvalidArgumentError(
               absl::StrCat("expected true or false, found '", text, "'"));
         }
         *value = text == "true";
         return absl::OkStatus();
       },
       [value] { return std::string(*value ? "true" : "false"); }});
}

void YamlSchema::Add(std::string key, int64_t* value, Range<int64_t> range, std::string help) {
  fields_.push_back({std::move(key), std::move(help),
                     [value, range](absl::string_view text, const std::vector<std::string>*) {
                       return ParseInto(text, range, value, ParseInteger, PrintInteger);
                     },
                     [value] { return PrintInteger(*value); }});
}

void YamlSchema::Add(std::string key, double* value, Range<double> range, std::string help) {
  fields_.push_back({std::move(key), std::move(help),
                     [value, range](absl::string_view text, const std::vector<std::string>*) {
                       return ParseInto(text, range, value, ParseNumber, FormatNumber);
                     },
                     [value] { return FormatNumber(*value); }});
}

void YamlSchema::Add(std::string key, std::vector<std::string>* value, std::string help) {
  fields_.push_back({std::move(key), std::move(help),
                     [value](absl::string_view, const std::vector<std::string>* list) {
                       *value = *list;
                       return absl::OkStatus();
                     },
                     [value] { return PrintList(*value, Quote); }, /*is_list=*/true});
}

void YamlSchema::Add(std::string key, std::vector<double>* value, std::string help) {
  fields_.push_back(
      {std::move(key), std::move(help),
       [value](absl::string_view, const std::vector<std::string>* list) -> absl::Status {
         std::vector<double> parsed;
         for (const std::string& text : *list) {
           SKEIN_ASSIGN_OR_RETURN(const double number, ParseNumber(text));
           parsed.push_back(number);
         }
         *value = std::move(parsed);
         return absl::OkStatus();
       },
       [value] { return PrintList(*value, FormatNumber); }, /*is_list=*/true});
}

void YamlSchema::AddChoice(std::string key, std::string* value, std::vector<std::string> choices,
                           std::string help) {
  absl::StrAppend(&help, " (", absl::StrJoin(choices, ", "), ")");
  fields_.push_back(
      {std::move(key), std::move(help),
       [value, choices](absl::string_view text, const std::vector<std::string>*) -> absl::Status {
         if (std::find(choices.begin(), choices.end(), text) == choices.end()) {
           return absl::InvalidArgumentError(
               absl::StrCat("'", text, "' is none of: ", absl::StrJoin(choices, ", ")));
         }
         *value = std::string(text);
         return absl::OkStatus();
       },
       [value] { return Quote(*value); }});
}

void YamlSchema::AddBytes(std::string key, int64_t* value, Range<int64_t> range, std::string help) {
  fields_.push_back({std::move(key), std::move(help),
                     [value, range](absl::string_view text, const std::vector<std::string>*) {
                       return ParseInto(text, range, value, ParseBytes, FormatBytes);
                     },
                     [value] { return FormatBytes(*value); }});
}

void YamlSchema::AddSeconds(std::string key, double* value, Range<double> range, std::string help) {
  fields_.push_back({std::move(key), std::move(help),
                     [value, range](absl::string_view text, const std::vector<std::string>*) {
                       return ParseInto(text, range, value, ParseSeconds, FormatSeconds);
                     },
                     [value] { return FormatSeconds(*value); }});
}

void YamlSchema::AddRecordList(std::string key, std::string help, std::function<void()> clear,
                               std::function<YamlSchema()> add,
                               std::function<std::vector<YamlSchema>()> present) {
  fields_.push_back(
      {std::move(key), std::move(help), nullptr,
       [present] {
         return PrintList(present(), [](const YamlSchema& record) { return record.PrintFlow(""); });
       },
       /*is_list=*/true, std::move(clear), std::move(add)});
}

const YamlSchema::Field* YamlSchema::Find(absl::string_view key) const {
  for (const Field& field : fields_) {
    if (field.key == key) return &field;
  }
  return nullptr;
}

std::string YamlSchema::Unknown(absl::string_view key) const {
  std::vector<std::string> known;
  for (const Field& field : fields_) {
    known.push_back(field.key);
    for (size_t dot = field.key.find('.'); dot != std::string::npos;
         dot = field.key.find('.', dot + 1)) {
      known.push_back(field.key.substr(0, dot));
    }
  }
  std::string nearest = Nearest(key, known);
  if (nearest.empty()) {
    // The right name in the wrong place.
    const std::string leaf =
        absl::StrCat(".", std::vector<std::string>(absl::StrSplit(key, '.')).back());
    for (const Field& field : fields_) {
      if (nearest.empty() && absl::EndsWith(field.key, leaf)) nearest = field.key;
    }
  }
  std::string message = absl::StrCat("unknown key '", key, "'");
  if (!nearest.empty()) absl::StrAppend(&message, "; did you mean '", nearest, "'?");
  return message;
}

absl::Status YamlSchema::LoadFile(const std::string& path) {
  SKEIN_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  return LoadText(text, path);
}

absl::Status YamlSchema::LoadText(absl::string_view text, absl::string_view name) {
  SKEIN_ASSIGN_OR_RETURN(const std::vector<Entry> entries, ReadEntries(text, name));
  return Apply(entries, name);
}

absl::Status YamlSchema::Apply(const std::vector<Entry>& entries, absl::string_view name) {
  std::set<absl::string_view> seen;  // "a.b: 1" and "a: {b: 1}" are the same key
  for (const Entry& entry : entries) {
    const auto fail = [&](absl::string_view message) { return AtLine(name, entry.line, message); };
    const Field* field = Find(entry.key);
    if (field == nullptr) {
      const std::string section = entry.key + ".";
      const bool is_section = std::any_of(fields_.begin(), fields_.end(), [&](const Field& f) {
        return absl::StartsWith(f.key, section);
      });
      if (!is_section) return fail(Unknown(entry.key));
      if (entry.kind == Entry::kMap || entry.kind == Entry::kNothing) continue;
      return fail(absl::StrCat("'", entry.key, "' holds keys of its own, not a value"));
    }
    if (!seen.insert(entry.key).second)
      return fail(absl::StrCat("key '", entry.key, "' appears twice"));
    SKEIN_RETURN_IF_ERROR(ApplyTo(*field, entry, name));
  }
  return absl::OkStatus();
}

absl::Status YamlSchema::ApplyTo(const Field& field, const Entry& entry,
                                 absl::string_view name) const {
  const auto fail = [&](absl::string_view message) { return AtLine(name, entry.line, message); };
  const bool of_records = field.new_record != nullptr;
  if (entry.kind == Entry::kMap)
    return fail(absl::StrCat("'", entry.key, "' takes a ", of_records ? "list of maps" : "value",
                             ", not keys"));
  if (entry.kind == Entry::kNothing) {
    return fail(
        absl::StrCat("'", entry.key, "' has no value; leave the key out for the default",
                     field.is_list ? ", write [] for none" : ", write \"\" for an empty text"));
  }
  if (field.is_list != (entry.kind == Entry::kList)) {
    return fail(absl::StrCat("'", entry.key, "' takes ",
                             of_records      ? "a list of maps, like [{key: value}]"
                             : field.is_list ? "a list, like [a, b]"
                                             : "one value, not a list"));
  }
  if (of_records ? !entry.list.empty() : !entry.records.empty()) {
    return fail(absl::StrCat("'", entry.key, "' takes ",
                             of_records ? "a list of maps, like [{key: value}]"
                                        : "a list of values; quote a value that holds ': '"));
  }
  if (of_records) {
    field.clear_records();
    for (const std::vector<Entry>& record : entry.records) {
      SKEIN_RETURN_IF_ERROR(field.new_record().Apply(record, name));
    }
    return absl::OkStatus();
  }
  const absl::Status status = field.parse(entry.text, &entry.list);
  return status.ok() ? status : fail(absl::StrCat("'", entry.key, "': ", status.message()));
}

absl::Status YamlSchema::Set(absl::string_view assignment) {
  const size_t equals = assignment.find('=');
  if (equals == absl::string_view::npos) {
    return absl::InvalidArgumentError(absl::StrCat("'", assignment, "': expected key=value"));
  }
  const absl::string_view key = absl::StripAsciiWhitespace(assignment.substr(0, equals));
  const absl::string_view text = assignment.substr(equals + 1);
  SKEIN_RETURN_IF_ERROR(CheckCharacters(text, key));
  const Field* field = Find(key);
  if (field == nullptr) return absl::InvalidArgumentError(Unknown(key));
  Entry list{Entry::kList, "", 1, "", {}, {}};
  if (field->is_list) {
    // "[a, b]" as in a file, or bare: "a,b".
    const std::string yaml =
        absl::StartsWith(text, "[") ? std::string(text) : absl::StrCat("[", text, "]");
    SKEIN_ASSIGN_OR_RETURN(std::vector<Entry> entries,
                           ReadEntries(absl::StrCat("list: ", yaml), key));
    if (entries.size() != 1 || entries[0].kind != Entry::kList) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", assignment, "': expected a list, like a,b"));
    }
    list = std::move(entries[0]);
    list.key = std::string(key);
    if (field->new_record != nullptr || !list.records.empty()) return ApplyTo(*field, list, key);
  }
  const absl::Status status = field->parse(text, &list.list);
  if (!status.ok())
    return absl::InvalidArgumentError(absl::StrCat("'", key, "': ", status.message()));
  return absl::OkStatus();
}

std::string YamlSchema::PrintFlow(const std::string& prefix) const {
  std::vector<std::string> parts;
  std::set<std::string> done;
  for (const Field& field : fields_) {
    if (!absl::StartsWith(field.key, prefix)) continue;
    const size_t dot = field.key.find('.', prefix.size());
    const std::string path = field.key.substr(0, dot);
    if (!done.insert(path).second) continue;
    parts.push_back(absl::StrCat(path.substr(prefix.size()), ": ",
                                 dot == std::string::npos ? field.print() : PrintFlow(path + ".")));
  }
  return absl::StrCat("{", absl::StrJoin(parts, ", "), "}");
}

std::vector<std::pair<std::string, std::string>> YamlSchema::Values() const {
  std::vector<std::pair<std::string, std::string>> values;
  for (const Field& field : fields_) values.emplace_back(field.key, field.print());
  return values;
}

std::string YamlSchema::Print() const {
  std::string text;
  std::set<std::string> done;
  // Keys of one section stand together, wherever they were added: a section may appear only once.
  const std::function<void(const std::string&, int)> print_section = [&](const std::string& prefix,
                                                                         int depth) {
    for (const Field& field : fields_) {
      if (!absl::StartsWith(field.key, prefix)) continue;
      const size_t dot = field.key.find('.', prefix.size());
      const std::string path = field.key.substr(0, dot);
      if (!done.insert(path).second) continue;
      absl::StrAppend(&text, std::string(2 * depth, ' '), path.substr(prefix.size()), ":");
      if (dot == std::string::npos) {
        absl::StrAppend(&text, " ", field.print(), "\n");
      } else {
        absl::StrAppend(&text, "\n");
        print_section(path + ".", depth + 1);
      }
    }
  };
  print_section("", 0);
  return text;
}

std::string YamlSchema::Help() const {
  std::string text;
  for (const Field& field : fields_)
    absl::StrAppend(&text, "  ", field.key, " (", field.print(), "): ", field.help, "\n");
  return text;
}

}  // namespace skein::base
