// Which files may be loaded while the server runs.

#include "server/model_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "engine/base/status.h"

namespace skein::server {
namespace {

namespace fs = std::filesystem;

class ModelFilesTest : public ::testing::Test {
 protected:
  ModelFilesTest()
      : root_(fs::canonical(fs::temp_directory_path()) /
              ("skein_models_" + std::to_string(getpid()))) {
    for (const char* folder : {"a", "b", "a/deep", "secret", "a-twin"}) {
      fs::create_directories(root_ / folder);
    }
    for (const char* file : {"a/one", "b/two", "b/one", "a/deep/three", "secret/key", "a-twin/x"}) {
      std::ofstream(root_ / file) << "data";
    }
    fs::create_symlink(root_ / "secret/key", root_ / "a/link");
    fs::create_symlink(root_ / "secret", root_ / "a/folder");
    fs::create_symlink(root_ / "b/two", root_ / "a/inner");
  }
  ~ModelFilesTest() override { fs::remove_all(root_); }

  std::string Find(const std::string& path) {
    const auto found = FindModelFile(path, {root_ / "missing", root_ / "a", root_ / "b"});
    if (found.ok()) return fs::path(*found).lexically_relative(root_).string();
    EXPECT_EQ(base::Reason(found.status()), "MODEL_FILE_NOT_FOUND") << path;
    return "";
  }

  const fs::path root_;
};

TEST_F(ModelFilesTest, InsideTheFolders) {
  EXPECT_EQ(Find("one"), "a/one");  // the first folder that has it
  EXPECT_EQ(Find("two"), "b/two");
  EXPECT_EQ(Find("deep/three"), "a/deep/three");
  EXPECT_EQ(Find("deep/../one"), "a/one");
  EXPECT_EQ(Find("../a/one"), "a/one");
  EXPECT_EQ(Find(root_ / "b/one"), "b/one");
}

TEST_F(ModelFilesTest, NothingElse) {
  for (const char* path : {"missing", "..", ".", "deep", "../secret/key", "link", "folder/key",
                           "../a-twin/x", "deep/../../secret/key", "/etc/passwd"}) {
    EXPECT_EQ(Find(path), "") << path;
  }
  EXPECT_EQ(Find(root_ / "secret/key"), "");
  EXPECT_EQ(Find(root_ / "a-twin/x"), "");
}

TEST_F(ModelFilesTest, ALinkCountsAsWhatItPointsTo) {
  EXPECT_FALSE(FindModelFile("inner", {root_ / "a"}).ok());
  EXPECT_EQ(Find(root_ / "a/inner"), "b/two");
}

TEST_F(ModelFilesTest, EmptyPathsAndNoFolders) {
  EXPECT_TRUE(absl::IsInvalidArgument(FindModelFile("", {root_ / "a"}).status()));
  EXPECT_TRUE(
      absl::IsInvalidArgument(FindModelFile(std::string("one\0x", 5), {root_ / "a"}).status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(FindModelFile("one", {}).status()));
}

}  // namespace
}  // namespace skein::server
