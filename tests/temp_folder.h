#pragma once
// A folder of this process alone, so that tests of several checkouts can run side by side.

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <string>

namespace skein {

// Its path; the folder goes when the process ends.
inline const std::string& TempFolder() {
  class Folder {
   public:
    Folder() : path_(testing::TempDir() + "/skein_test.XXXXXX") {
      EXPECT_NE(mkdtemp(path_.data()), nullptr) << path_;
    }
    ~Folder() {
      std::error_code ignored;
      std::filesystem::remove_all(path_, ignored);
    }
    const std::string& path() const { return path_; }

   private:
    std::string path_;
  };
  static const Folder folder;
  return folder.path();
}

}  // namespace skein
