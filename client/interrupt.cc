#include "client/interrupt.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

#include "engine/base/check.h"

namespace skein::client {
namespace {

std::atomic<int> write_fd{-1};  // what the signal handler writes to

void OnSignal(int) {
  const int saved = errno;
  const char byte = 1;
  // A full pipe already says what there is to say.
  [[maybe_unused]] const ssize_t written = write(write_fd.load(), &byte, 1);
  errno = saved;
}

}  // namespace

Interrupts::Interrupts() {
  SKEIN_CHECK(write_fd.load() == -1);
  int fds[2];
  SKEIN_CHECK(pipe2(fds, O_CLOEXEC | O_NONBLOCK) == 0);
  read_fd_ = fds[0];
  write_fd = fds[1];
  struct sigaction action = {};
  action.sa_handler = OnSignal;
  action.sa_flags = SA_RESTART;
  SKEIN_CHECK(sigaction(SIGINT, &action, &before_) == 0);
}

Interrupts::~Interrupts() {
  sigaction(SIGINT, &before_, nullptr);
  close(write_fd.exchange(-1));
  close(read_fd_);
}

bool Interrupts::Take() {
  char bytes[64];
  bool any = false;
  while (read(read_fd_, bytes, sizeof(bytes)) > 0) any = true;
  return any;
}

}  // namespace skein::client
