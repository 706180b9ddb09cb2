#pragma once
// Ctrl-C as something to wait for. While one of these exists SIGINT does not end the process. One
// at a time.

#include <csignal>

namespace skein::client {

class Interrupts {
 public:
  Interrupts();
  ~Interrupts();
  Interrupts(const Interrupts&) = delete;
  Interrupts& operator=(const Interrupts&) = delete;

  int fd() const { return read_fd_; }  // readable after a Ctrl-C
  bool Take();                         // whether there was one since the last Take

 private:
  int read_fd_ = -1;
  struct sigaction before_;
};

}  // namespace skein::client
