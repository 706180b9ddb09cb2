#include "trainer/progress.h"

#include <gmock/gmock.h>

namespace skein::trainer {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::SizeIs;

// As long as its figures get on a small machine.
const StepLine kLine{1100, 2200, 0.1274, 2e-3, 12.34, 123456};

TEST(BarLine, AWideTerminalHasAllWithALongBar) {
  const std::string line = BarLine(kLine, 48, 120);
  EXPECT_EQ(line,
            "[############............] 1100/2200  loss 0.1274  lr 2.0e-03  grad 12.34  "
            "123456 tok/s  ETA 0:48");
}

TEST(BarLine, EightyColumnsHaveAllWithAShortBar) {
  const std::string line = BarLine(kLine, 48, 80);
  EXPECT_EQ(line,
            "[###...] 1100/2200  loss 0.1274  lr 2.0e-03  grad 12.34  123456 tok/s  ETA 0:48");
  EXPECT_THAT(line, SizeIs(79));
}

TEST(BarLine, LongFiguresTakeThePlaceOfTheBar) {
  StepLine line = kLine;
  line.step = 27720;
  line.steps = 30000;
  EXPECT_EQ(BarLine(line, 3723, 80),
            "27720/30000  loss 0.1274  lr 2.0e-03  grad 12.34  123456 tok/s  ETA 1:02:03");
}

TEST(BarLine, ANarrowTerminalKeepsWhatMattersMost) {
  EXPECT_EQ(BarLine(kLine, 48, 50), "1100/2200  loss 0.1274  123456 tok/s  ETA 0:48");
  EXPECT_EQ(BarLine(kLine, 48, 40), "[##..] 1100/2200  loss 0.1274  ETA 0:48");
  EXPECT_EQ(BarLine(kLine, 48, 24), "1100/2200  ETA 0:48");
}

TEST(BarLine, NeverReachesTheLastColumn) {
  for (int columns = 0; columns < 200; ++columns) {
    EXPECT_LT(BarLine(kLine, 48, columns).size(), std::max(columns, 1)) << columns;
  }
}

TEST(BarLine, FillsTheBarAtTheEnd) {
  StepLine line = kLine;
  line.step = line.steps;
  EXPECT_THAT(BarLine(line, 0, 120), HasSubstr("[########################] "));
  EXPECT_THAT(BarLine(line, 0, 120), Not(HasSubstr(".]")));
}

}  // namespace
}  // namespace skein::trainer
