#pragma once
// The folder of one run: config.yaml, log.jsonl, TensorBoard events, checkpoints, and the resumable
// state.safetensors. Never overwritten: a run either starts in a new folder or resumes the one that
// is there.

#include <cstdio>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "trainer/config.h"

namespace skein::trainer {

class RunFolder {
 public:
  // Decides by run.resume. ALREADY_EXISTS, NOT_FOUND: the message says what to do. Holds a lock on
  // the folder while it lives, so that two runs never write the same one.
  static absl::StatusOr<std::unique_ptr<RunFolder>> Open(const RunConfig& config);
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  bool has_state() const { return has_state_; }  // there was something to resume
  bool existed() const { return existed_; }
  const std::string& path() const { return path_; }
  std::string File(const std::string& name) const { return path_ + "/" + name; }
  std::string StateFile() const { return File("state.safetensors"); }
  std::string LogFile() const { return File("log.jsonl"); }
  // One JSON object on a line of the log.
  absl::Status Log(const std::string& json);

 private:
  RunFolder(std::string path, int lock) : path_(std::move(path)), lock_(lock) {}
  const std::string path_;
  const int lock_;
  bool existed_ = false, has_state_ = false;
  std::FILE* log_ = nullptr;
};

}  // namespace skein::trainer
