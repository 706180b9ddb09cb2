#include "client/command.h"
#include "engine/base/mutex_checks.h"

int main(int argc, char** argv) {
  skein::base::LeaveOutMutexChecks();
  skein::client::Terminal terminal = skein::client::Terminal::Standard();
  return skein::client::RunSkein(argc, argv, &terminal);
}
