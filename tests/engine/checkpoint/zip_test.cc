// Reader and writer of the zip around a .pth.

#include <string>

#include "engine/checkpoint/zip_reader.h"
#include "engine/checkpoint/zip_writer.h"
#include "tests/engine/checkpoint/test_files.h"

namespace skein::engine {
namespace {

using ::testing::HasSubstr;

std::string WriteZip(const std::vector<std::pair<std::string, std::string>>& entries,
                     uint64_t narrow_limit) {
  TestFolder folder;
  auto file = base::AtomicFile::Create(folder / "z.zip");
  EXPECT_TRUE(file.ok()) << file.status();
  ZipWriter writer(file->get(), narrow_limit);
  for (const auto& [name, contents] : entries) {
    EXPECT_TRUE(writer.Add(name, contents).ok());
  }
  EXPECT_TRUE(writer.Finish().ok());
  EXPECT_TRUE((*file)->Commit().ok());
  return *base::ReadFile(folder / "z.zip");
}

TEST(Zip, ReadsBackWhatItWrites) {
  const std::vector<std::pair<std::string, std::string>> entries = {
      {"a/one", "1"}, {"a/empty", ""}, {"a/long", std::string(1000, 'x')}, {"a/π", "two"}};
  // The smaller limits write 64-bit sizes, offsets and end records into a file of a kilobyte.
  for (const uint64_t limit : {uint64_t{0xffffffff}, uint64_t{1000}, uint64_t{100}, uint64_t{0}}) {
    const std::string file = WriteZip(entries, limit);
    const auto read = ReadZip(file);
    ASSERT_TRUE(read.ok()) << limit << ": " << read.status();
    ASSERT_EQ(read->size(), entries.size());
    for (size_t i = 0; i < entries.size(); ++i) {
      const ZipEntry& entry = (*read)[i];
      EXPECT_EQ(entry.name, entries[i].first);
      EXPECT_EQ(entry.contents, entries[i].second);
      EXPECT_FALSE(entry.compressed);
      EXPECT_EQ(entry.crc32, Crc32(entry.contents.data(), entry.contents.size()));
      EXPECT_EQ((entry.contents.data() - file.data()) % 64, 0);
    }
    for (size_t size = 0; size < file.size(); ++size) {
      EXPECT_FALSE(ReadZip(file.substr(0, size)).ok()) << limit << " " << size;
    }
  }
}

TEST(Zip, ReadsMoreEntriesThan16BitsCount) {
  std::vector<std::pair<std::string, std::string>> entries;
  for (int i = 0; i < 66'000; ++i) entries.emplace_back(absl::StrCat("e", i), "");
  const std::string file = WriteZip(entries, 0xffffffff);
  const auto read = ReadZip(file);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->size(), 66'000);
}

TEST(Zip, ReadsDescriptorsAndComments) {
  TestEntry entry{"a", "contents"};
  entry.descriptor = true;
  std::string file = ZipFile({entry, {"b", ""}});
  auto read = ReadZip(file);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ((*read)[0].contents, "contents");
  file[file.size() - 2] = 5;
  file += "12345";
  read = ReadZip(file);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->size(), 2);
}

TEST(Zip, RefusesEntriesThatDisagree) {
  const auto with = [](auto change) {
    TestEntry entry{"name", "contents"};
    change(&entry);
    return ZipFile({entry, {"second", "x"}});
  };
  const struct {
    const char* what;
    std::string file, message;
  } kTable[] = {
      {"two names", with([](TestEntry* e) { e->local_name = "eman"; }), "local header"},
      {"a longer name", with([](TestEntry* e) { e->local_name = "name2"; }), "local header"},
      {"local size", with([](TestEntry* e) { e->wrong_local_size = true; }), "local header"},
      {"size past the end", with([](TestEntry* e) { e->central_size = 100000; }),
       "reaches past its end"},
      {"size 4 GB without zip64", with([](TestEntry* e) { e->central_size = 0xffffffff; }),
       "64-bit sizes"},
      {"size over the next entry", with([](TestEntry* e) { e->central_size = 20; }),
       "local header"},
      {"offset nowhere", with([](TestEntry* e) { e->local_offset = 3; }), "local header"},
      {"offset past the end", with([](TestEntry* e) { e->local_offset = 0xfffffff0; }),
       "local header"},
      {"descriptor", with([](TestEntry* e) { e->descriptor = e->wrong_descriptor = true; }),
       "data descriptor"},
      {"descriptor promised", with([](TestEntry* e) { e->flags = 8; }), "data descriptor"},
      {"name with NUL", with([](TestEntry* e) { e->name = std::string("a\0b", 3); }),
       "the name of the entry"},
      {"no name", with([](TestEntry* e) { e->name = ""; }), "the name of the entry"},
      {"same name", ZipFile({{"a", "1"}, {"a", "2"}}), "two entries are called 'a'"},
  };
  for (const auto& row : kTable) {
    EXPECT_THAT(Refusal(ReadZip(row.file)), HasSubstr(row.message)) << row.what;
  }
  const auto encrypted = with([](TestEntry* e) { e->flags = 1; });
  EXPECT_THAT(Refusal(ReadZip(encrypted), absl::StatusCode::kUnimplemented),
              HasSubstr("encrypted"));
}

// Two names for one local entry: the trick of zip bombs. The local names must agree too, so the
// inner entry hides in the contents of the outer one.
TEST(Zip, RefusesOverlap) {
  const std::string inner = ZipFile({{"inner", "x"}});
  TestEntry outer{"outer", inner};
  TestEntry hidden{"inner", "x"};
  hidden.local_offset = 30 + 5;  // inside the contents of `outer`
  EXPECT_THAT(Refusal(ReadZip(ZipFile({outer, hidden}))), HasSubstr("entries overlap"));
}

TEST(Zip, RefusesWrongEnds) {
  const std::string good = ZipFile({{"a", "1"}});
  const size_t end = good.size() - 22;
  const struct {
    size_t at;
    char value;
    const char* message;
  } kTable[] = {
      {end + 4, 1, "several parts"},
      {end + 6, 1, "several parts"},
      {end + 8, 2, "several parts"},
      {end + 12, 1, "not where the end record says"},
      {end + 16, 1, "not where the end record says"},
      {end + 20, 1, "no directory"},
      {end, 'x', "no directory"},
  };
  for (const auto& row : kTable) {
    std::string file = good;
    file[row.at] = row.value;
    EXPECT_THAT(Refusal(ReadZip(file)), HasSubstr(row.message)) << row.at;
  }
  std::string more = good;
  more[end + 8] = more[end + 10] = 2;
  EXPECT_THAT(Refusal(ReadZip(more)), HasSubstr("number of entries"));
  std::string fewer = ZipFile({{"a", "1"}, {"b", "2"}});
  fewer[fewer.size() - 14] = fewer[fewer.size() - 12] = 1;
  EXPECT_THAT(Refusal(ReadZip(fewer)), HasSubstr("length of the directory"));
  EXPECT_THAT(Refusal(ReadZip("junk" + good)), HasSubstr("not where the end record says"));
  EXPECT_THAT(Refusal(ReadZip(good + "junk")), HasSubstr("no directory"));
}

TEST(Zip, RefusesWrong64BitEnds) {
  const std::string good = WriteZip({{"a", "1"}}, 0);
  const size_t end64 = good.size() - 22 - 20 - 56;
  ASSERT_EQ(good.substr(end64, 4), "PK\x06\x06");
  for (const size_t at : {size_t{0}, size_t{4}, size_t{16}, size_t{20}, size_t{24}, size_t{32},
                          size_t{40}, size_t{48}, size_t{55}, size_t{56 + 8}, size_t{56 + 15}}) {
    std::string file = good;
    file[end64 + at] ^= 0x40;
    EXPECT_FALSE(ReadZip(file).ok()) << at;
  }
}

}  // namespace
}  // namespace skein::engine
