#include "engine/checkpoint.h"
#include "engine/checkpoint/float_bits.h"

namespace skein::engine {

float BF16ToF32(uint16_t bits) { return WidenBF16(bits); }
uint16_t F32ToBF16(float value) { return NarrowToBF16(value); }
float F16ToF32(uint16_t bits) { return WidenF16(bits); }

}  // namespace skein::engine
