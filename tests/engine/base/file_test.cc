#include "engine/base/file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace skein::base {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class FileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "/skein_file_test.XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string Path(const std::string& name) const { return folder_ + "/" + name; }
  std::vector<std::string> Names() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder_))
      names.push_back(entry.path().filename());
    std::sort(names.begin(), names.end());
    return names;
  }

  std::string folder_;
};

TEST_F(FileTest, WritesAndReads) {
  const std::string contents("a\0b\n\xFF", 5);
  ASSERT_TRUE(WriteFileAtomically(Path("x"), contents).ok());
  EXPECT_EQ(ReadFile(Path("x")).value(), contents);
  auto mapped = MappedFile::Open(Path("x"));
  ASSERT_TRUE(mapped.ok()) << mapped.status();
  EXPECT_EQ(std::string(reinterpret_cast<const char*>((*mapped)->data()), (*mapped)->size()),
            contents);
  EXPECT_EQ((*mapped)->path(), Path("x"));
  EXPECT_THAT(Names(), ElementsAre("x"));
}

TEST_F(FileTest, AMappingOutlivesItsReplacement) {
  ASSERT_TRUE(WriteFileAtomically(Path("x"), "old").ok());
  auto mapped = MappedFile::Open(Path("x"));
  ASSERT_TRUE(mapped.ok());
  ASSERT_TRUE(WriteFileAtomically(Path("x"), "newer").ok());
  EXPECT_EQ(std::memcmp((*mapped)->data(), "old", 3), 0);
  EXPECT_EQ(ReadFile(Path("x")).value(), "newer");
}

TEST_F(FileTest, EmptyFile) {
  ASSERT_TRUE(WriteFileAtomically(Path("x"), "").ok());
  auto mapped = MappedFile::Open(Path("x"));
  ASSERT_TRUE(mapped.ok()) << mapped.status();
  EXPECT_EQ((*mapped)->size(), 0);
  EXPECT_NE((*mapped)->data(), nullptr);
}

TEST_F(FileTest, BadPathsAreNamed) {
  EXPECT_EQ(MappedFile::Open(Path("none")).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(MappedFile::Open(Path("none")).status().message()),
              HasSubstr(Path("none")));
  EXPECT_EQ(MappedFile::Open(folder_).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(ReadFile(folder_).ok());
  ASSERT_EQ(mkfifo(Path("pipe").c_str(), 0600), 0);
  EXPECT_EQ(MappedFile::Open(Path("pipe")).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(AtomicFile::Create(folder_).status().code(), absl::StatusCode::kInvalidArgument);
  const absl::Status status = WriteFileAtomically(Path("none/x"), "a");
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr(Path("none/x")));
}

TEST_F(FileTest, TheOldFileStaysUntilCommit) {
  ASSERT_TRUE(WriteFileAtomically(Path("x"), "old").ok());
  {
    auto file = AtomicFile::Create(Path("x"));
    ASSERT_TRUE(file.ok());
    ASSERT_TRUE((*file)->Append("half").ok());
    EXPECT_EQ(ReadFile(Path("x")).value(), "old");
    EXPECT_EQ(Names().size(), 2);
  }  // never committed
  EXPECT_THAT(Names(), ElementsAre("x"));
  EXPECT_EQ(ReadFile(Path("x")).value(), "old");

  auto file = AtomicFile::Create(Path("x"));
  ASSERT_TRUE((*file)->Append("new").ok());
  ASSERT_TRUE((*file)->Commit().ok());
  EXPECT_EQ(ReadFile(Path("x")).value(), "new");
  EXPECT_EQ((*file)->Append("more").code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ((*file)->Commit().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(FileTest, TwoWritersDoNotDisturbEachOther) {
  auto first = AtomicFile::Create(Path("x"));
  auto second = AtomicFile::Create(Path("x"));
  ASSERT_TRUE(first.ok() && second.ok());
  ASSERT_TRUE((*first)->Append("first").ok());
  ASSERT_TRUE((*second)->Append("second").ok());
  ASSERT_TRUE((*first)->Commit().ok());
  EXPECT_EQ(ReadFile(Path("x")).value(), "first");
  ASSERT_TRUE((*second)->Commit().ok());
  EXPECT_EQ(ReadFile(Path("x")).value(), "second");
}

// Runs `body` in a child; the child's exit code is returned, -signal when it was killed.
int InChild(const std::function<int()>& body) {
  const pid_t child = fork();
  if (child == 0) _exit(body());
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

TEST_F(FileTest, AKilledWriterLosesNothingAndItsRubbishGoes) {
  ASSERT_TRUE(WriteFileAtomically(Path("x"), "old").ok());
  EXPECT_EQ(InChild([&] {
              auto file = AtomicFile::Create(Path("x"));
              (*file)->Append("half").IgnoreError();
              raise(SIGKILL);
              return 0;
            }),
            -SIGKILL);
  EXPECT_EQ(ReadFile(Path("x")).value(), "old");
  EXPECT_EQ(Names().size(), 2);
  ASSERT_TRUE(WriteFileAtomically(Path("x"), "new").ok());
  EXPECT_THAT(Names(), ElementsAre("x"));
}

TEST_F(FileTest, TheRubbishOfAllWritersGoesAndNothingElse) {
  const std::vector<std::string> others = {".tmp.1.2", "thesis",    "x.tmp.1",
                                           "x.tmp.1.", "x.tmp.a.2", "x.tmp.1.2b"};
  for (const std::string& name : others) {
    EXPECT_FALSE(IsTemporary(name)) << name;
    ASSERT_TRUE(WriteFileAtomically(Path(name), "mine").ok());
  }
  for (const std::string name : {"x.tmp.1.2", "a.b.tmp.33.44"}) {
    EXPECT_TRUE(IsTemporary(name)) << name;
    ASSERT_TRUE(WriteFileAtomically(Path(name), "half").ok());
  }
  auto living = AtomicFile::Create(Path("y"));
  ASSERT_TRUE(living.ok());
  RemoveAbandoned(folder_);
  ASSERT_TRUE((*living)->Commit().ok());
  std::vector<std::string> kept = others;
  kept.push_back("y");
  EXPECT_THAT(Names(), ::testing::UnorderedElementsAreArray(kept));
  RemoveAbandoned(Path("none"));
}

// 0 when the write failed as it should and the old file is whole.
int WriteTooMuch(const std::string& path) {
  const absl::Status status = WriteFileAtomically(path, std::string(1 << 20, 'x'));
  if (status.code() != absl::StatusCode::kResourceExhausted) return 1;
  if (status.message().find(path) == absl::string_view::npos) return 2;
  if (ReadFile(path).value() != "old") return 3;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::filesystem::path(path).parent_path())) {
    if (entry.path() != path) return 4;  // the temporary must give its space back
  }
  return 0;
}

TEST_F(FileTest, FileSizeLimit) {
  ASSERT_TRUE(WriteFileAtomically(Path("x"), "old").ok());
  EXPECT_EQ(InChild([&] {
              signal(SIGXFSZ, SIG_IGN);
              const rlimit limit = {4096, 4096};
              setrlimit(RLIMIT_FSIZE, &limit);
              return WriteTooMuch(Path("x"));
            }),
            0);
}

TEST_F(FileTest, DiskFull) {
  constexpr int kNoMount = 100;
  const int result = InChild([&] {
    if (geteuid() != 0 && unshare(CLONE_NEWUSER) != 0) return kNoMount;
    if (unshare(CLONE_NEWNS) != 0) return kNoMount;
    if (mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return kNoMount;
    if (mount("tmpfs", folder_.c_str(), "tmpfs", 0, "size=64k") != 0) return kNoMount;
    if (!WriteFileAtomically(Path("x"), "old").ok()) return 101;
    return WriteTooMuch(Path("x"));
  });
  if (result == kNoMount) GTEST_SKIP() << "this machine lets a test mount no small tmpfs";
  EXPECT_EQ(result, 0);
}

TEST_F(FileTest, MakeFolder) {
  EXPECT_TRUE(MakeFolder(Path("a/b/c")).ok());
  EXPECT_TRUE(MakeFolder(Path("a/b/c")).ok());
  EXPECT_TRUE(std::filesystem::is_directory(Path("a/b/c")));
  ASSERT_TRUE(WriteFileAtomically(Path("file"), "").ok());
  const absl::Status status = MakeFolder(Path("file/d"));
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("make the folder"), HasSubstr(Path("file/d"))));
  EXPECT_FALSE(MakeFolder(Path("file")).ok());
}

TEST(Hash64, KnownValues) {
  EXPECT_EQ(Hash64("", 0), 0x2d06800538d394c2u);
  EXPECT_NE(Hash64("a", 1), Hash64("b", 1));
  EXPECT_NE(Hash64("a", 1, 1), Hash64("a", 1, 2));
}

TEST(Hash64, PieceByPieceIsTheSame) {
  std::string data(300000, '\0');
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i * 131 + i / 7);
  for (const size_t piece : {size_t{1000}, size_t{4096}, size_t{299999}}) {
    Hasher64 hasher;
    for (size_t at = 0; at < data.size(); at += piece) {
      hasher.Add(data.data() + at, std::min(piece, data.size() - at));
    }
    EXPECT_EQ(hasher.Hash(), Hash64(data.data(), data.size())) << piece;
  }
  EXPECT_EQ(Hasher64().Hash(), Hash64("", 0));
}

TEST_F(FileTest, AMappingCanBeReadAgainAfterItsRelease) {
  const std::string contents(100000, 'x');
  ASSERT_TRUE(WriteFileAtomically(Path("file"), contents).ok());
  const auto file = MappedFile::Open(Path("file"));
  ASSERT_TRUE(file.ok());
  (*file)->Expect((*file)->data() + 5000, 50000);
  (*file)->Release((*file)->data() + 1, (*file)->size() - 1);
  EXPECT_EQ(std::memcmp((*file)->data(), contents.data(), contents.size()), 0);
}

TEST_F(FileTest, AnOpenFileIsReadAnywhereAndToldWhenItEnds) {
  ASSERT_TRUE(WriteFileAtomically(Path("file"), "0123456789").ok());
  const auto file = OpenFile::Open(Path("file"));
  ASSERT_TRUE(file.ok());
  EXPECT_EQ((*file)->size(), 10);
  char out[4] = {};
  ASSERT_TRUE((*file)->Read(5, out, 4).ok());
  EXPECT_EQ(std::string(out, 4), "5678");
  EXPECT_TRUE(absl::IsDataLoss((*file)->Read(8, out, 4)));
  std::filesystem::resize_file(Path("file"), 6);
  EXPECT_TRUE(absl::IsDataLoss((*file)->Read(5, out, 4)));
  EXPECT_TRUE(absl::IsNotFound(OpenFile::Open(Path("no")).status()));
  EXPECT_FALSE(OpenFile::Open(folder_).ok());
}

TEST_F(FileTest, AnotherFileHasAnotherIdentity) {
  ASSERT_TRUE(WriteFileAtomically(Path("file"), "one").ok());
  const auto first = Identify(Path("file"));
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(*first, *Identify(Path("file")));
  EXPECT_EQ(*first, (*MappedFile::Open(Path("file")))->identity());
  ASSERT_TRUE(WriteFileAtomically(Path("file"), "two").ok());
  EXPECT_FALSE(*first == *Identify(Path("file")));
}

}  // namespace
}  // namespace skein::base
