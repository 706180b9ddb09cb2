#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>

#include "engine/checkpoint.h"

namespace skein::engine {
namespace {

TEST(FloatTypes, Bf16SurvivesTheWayThereAndBack) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float wide = BF16ToF32(bits);
    if (std::isnan(wide)) {
      EXPECT_TRUE(std::isnan(BF16ToF32(F32ToBF16(wide)))) << bits;
    } else {
      EXPECT_EQ(F32ToBF16(wide), bits);
    }
  }
}

// Against the definition: the nearer neighbour, the even one when both are as near.
TEST(FloatTypes, Bf16RoundsToNearestEven) {
  std::mt19937 random(1);
  for (int i = 0; i < 1'000'000; ++i) {
    uint32_t bits = random();
    if (i % 4 == 0) bits = (bits & 0xffff0000) | 0x8000;  // exactly between two
    const float value = std::bit_cast<float>(bits);
    if (!std::isfinite(value)) continue;
    const auto below = static_cast<uint16_t>(bits >> 16);
    const auto above = static_cast<uint16_t>(below + 1);
    const double gap_below = std::fabs(double{value} - BF16ToF32(below));
    // The neighbour of the largest number counts as the next power of two, though it is infinity.
    const double next =
        std::isinf(BF16ToF32(above)) ? std::copysign(0x1p128, value) : BF16ToF32(above);
    const double gap_above = std::fabs(next - value);
    const uint16_t expected = gap_below < gap_above   ? below
                              : gap_above < gap_below ? above
                              : below % 2 == 0        ? below
                                                      : above;
    ASSERT_EQ(F32ToBF16(value), expected) << std::hexfloat << value;
  }
}

TEST(FloatTypes, Bf16KeepsNanAndInfinity) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(F32ToBF16(kInfinity), 0x7f80);
  EXPECT_EQ(F32ToBF16(-kInfinity), 0xff80);
  EXPECT_EQ(F32ToBF16(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_EQ(F32ToBF16(-0.0f), 0x8000);
  // NaNs whose fraction would round up into infinity or down to nothing.
  for (const uint32_t bits : {0x7fffffffu, 0x7f800001u, 0xff800001u, 0xffffffffu, 0x7fc00000u}) {
    const float narrow = BF16ToF32(F32ToBF16(std::bit_cast<float>(bits)));
    EXPECT_TRUE(std::isnan(narrow)) << bits;
    EXPECT_EQ(std::signbit(narrow), (bits >> 31) != 0) << bits;
  }
}

TEST(FloatTypes, F16FollowsItsDefinition) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const int exponent = (bits >> 10) & 31, fraction = bits & 1023;
    const float value = F16ToF32(bits);
    EXPECT_EQ(std::signbit(value), (bits >> 15) != 0) << bits;
    if (exponent == 31) {
      EXPECT_TRUE(fraction == 0 ? std::isinf(value) : std::isnan(value)) << bits;
      continue;
    }
    const double magnitude =
        exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    EXPECT_EQ(std::fabs(value), magnitude) << bits;
  }
}

}  // namespace
}  // namespace skein::engine
