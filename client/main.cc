#include "client/command.h"

int main(int argc, char** argv) {
  skein::client::Terminal terminal = skein::client::Terminal::Standard();
  return skein::client::RunSkein(argc, argv, &terminal);
}
