// Log lines to where they cannot go: never a wait, always a count.

#include "server/log_sink.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <string>
#include <thread>
#include <vector>

namespace skein::server {
namespace {

std::string ReadAll(int fd) {
  std::string text(1 << 20, 0);
  size_t size = 0;
  while (true) {
    const ssize_t n = read(fd, text.data() + size, text.size() - size);
    if (n <= 0) break;
    size += static_cast<size_t>(n);
  }
  text.resize(size);
  return text;
}

TEST(LogSinkTest, AFullDiskLosesLinesAndNothingElse) {
  const int fd = open("/dev/full", O_WRONLY | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  LogSink sink(fd);
  for (int i = 0; i < 10; ++i) sink.Write("line\n");
  EXPECT_EQ(sink.lost(), 10);
  close(fd);
}

TEST(LogSinkTest, APipeThatNobodyReadsLosesLinesWithoutWaiting) {
  int fds[2];
  ASSERT_EQ(pipe2(fds, O_CLOEXEC), 0);
  LogSink sink(fds[1]);
  const std::string line = std::string(999, 'x') + "\n";
  for (int i = 0; i < 1000; ++i) sink.Write(line);  // a pipe holds 64 KiB
  const int64_t lost = sink.lost();
  EXPECT_GT(lost, 900);
  EXPECT_LT(lost, 1000);
  // What was read makes room again; lines stay whole.
  std::string text(16384, 0);
  ASSERT_EQ(read(fds[0], text.data(), text.size()), 16384);
  sink.Write("again\n");
  EXPECT_EQ(sink.lost(), lost);
  close(fds[1]);
  text += ReadAll(fds[0]);
  EXPECT_EQ(text.substr(text.size() - 7), "\nagain\n");
  close(fds[0]);
}

TEST(LogSinkTest, LinesOfManyThreadsStayWhole) {
  int fds[2];
  ASSERT_EQ(pipe2(fds, O_CLOEXEC), 0);
  LogSink sink(fds[1]);
  std::vector<std::thread> writers;
  for (int t = 0; t < 4; ++t) {
    writers.emplace_back([&sink, t] {
      for (int i = 0; i < 50; ++i) sink.Write(std::string(100, static_cast<char>('a' + t)) + "\n");
    });
  }
  for (std::thread& writer : writers) writer.join();
  close(fds[1]);
  const std::string text = ReadAll(fds[0]);
  ASSERT_EQ(text.size(), 200u * 101);
  for (size_t at = 0; at < text.size(); at += 101) {
    EXPECT_EQ(text[at + 100], '\n');
    EXPECT_EQ(text.substr(at, 100), std::string(100, text[at]));
  }
  EXPECT_EQ(sink.lost(), 0);
  close(fds[0]);
}

}  // namespace
}  // namespace skein::server
