#pragma once
// Strict YAML: every key must be known, every value of the right type and range; errors name path,
// line, key and the nearest known key. A config is declared as a table of fields; the same table
// prints the effective config.
//
//   base::YamlSchema schema;
//   schema.Add("listen.address", &config.address, "where gRPC listens");
//   schema.Add("limits.queued", &config.queued, base::Range<int64_t>(1, 1000000), "...");
//   SKEIN_RETURN_IF_ERROR(schema.LoadFile(path));            // keys that are absent keep their
//   value SKEIN_RETURN_IF_ERROR(schema.Set("limits.queued=8"));    // --set std::string text =
//   schema.Print();                        // --print-effective-config
//
// Not thread-safe.

#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace skein::base {

template <typename T>
struct Range {
  Range(T lo, T hi) : min(lo), max(hi) {}
  T min, max;
};

class YamlSchema {
 public:
  // Dotted keys name nested maps. Pointers must outlive the schema; the value found there is the
  // default.
  void Add(std::string key, std::string* value, std::string help);
  void Add(std::string key, bool* value, std::string help);
  void Add(std::string key, int64_t* value, Range<int64_t> range, std::string help);
  void Add(std::string key, double* value, Range<double> range, std::string help);
  void Add(std::string key, std::vector<std::string>* value, std::string help);
  void Add(std::string key, std::vector<double>* value, std::string help);
  // One of a fixed set of words.
  void AddChoice(std::string key, std::string* value, std::vector<std::string> choices,
                 std::string help);
  // Sizes: "512MiB", "2GiB", "1000000" (bytes). Durations: "30s", "1500ms", "2m", "0".
  void AddBytes(std::string key, int64_t* value, Range<int64_t> range, std::string help);
  void AddSeconds(std::string key, double* value, Range<double> range, std::string help);
  // A list of maps. `declare(schema, record)` adds the keys of one record, which starts as T().
  template <typename T>
  void AddRecords(std::string key, std::vector<T>* value,
                  std::function<void(YamlSchema*, T*)> declare, std::string help) {
    AddRecordList(
        std::move(key), std::move(help), [value] { value->clear(); },
        [value, declare] {
          value->emplace_back();
          return Declared<T>(declare, &value->back());
        },
        [value, declare] {
          std::vector<YamlSchema> records;
          for (T& record : *value) records.push_back(Declared<T>(declare, &record));
          return records;
        });
  }

  absl::Status LoadFile(const std::string& path);
  // `name` stands for the path in messages.
  absl::Status LoadText(absl::string_view text, absl::string_view name);
  // "key=value" of the command line or an environment override.
  absl::Status Set(absl::string_view assignment);
  // All keys in the order they were added, with their present values, as YAML that LoadText reads
  // back.
  std::string Print() const;
  // Each key with its present value, in the order they were added.
  std::vector<std::pair<std::string, std::string>> Values() const;
  // "key (default): help" lines for --help.
  std::string Help() const;

 private:
  struct Entry;  // one value of a document
  friend class EntryReader;

  struct Field {
    std::string key;
    std::string help;
    std::function<absl::Status(absl::string_view text, const std::vector<std::string>* list)> parse;
    std::function<std::string()> print;
    bool is_list = false;
    // Of a list of maps only: forgets all records, and declares a new one.
    std::function<void()> clear_records = nullptr;
    std::function<YamlSchema()> new_record = nullptr;
  };
  template <typename T>
  static YamlSchema Declared(const std::function<void(YamlSchema*, T*)>& declare, T* record) {
    YamlSchema schema;
    declare(&schema, record);
    return schema;
  }
  void AddRecordList(std::string key, std::string help, std::function<void()> clear,
                     std::function<YamlSchema()> add,
                     std::function<std::vector<YamlSchema>()> present);
  static absl::StatusOr<std::vector<Entry>> ReadEntries(absl::string_view text,
                                                        absl::string_view name);
  absl::Status Apply(const std::vector<Entry>& entries, absl::string_view name);
  absl::Status ApplyTo(const Field& field, const Entry& entry, absl::string_view name) const;
  // "{a: 1, b: {c: 2}}", or the keys below `prefix`.
  std::string PrintFlow(const std::string& prefix) const;
  const Field* Find(absl::string_view key) const;
  std::string Unknown(absl::string_view key) const;  // "unknown key 'x'; did you mean 'y'?"
  std::vector<Field> fields_;
};

// The known word nearest to `word` by edit distance; empty when none is near.
std::string Nearest(absl::string_view word, const std::vector<std::string>& known);

}  // namespace skein::base
