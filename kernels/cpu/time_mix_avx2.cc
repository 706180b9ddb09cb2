// See time_mix_body.h.

#include "kernels/cpu/lanes_avx2.h"
#include "kernels/cpu/ops_avx2.h"
#include "kernels/cpu/time_mix_body.h"

namespace skein::kernels::avx2 {

void Prepare(const PrepareParams& p, Stream& stream) { RunPrepare<Ymm>(p, stream); }
void Wkv7(const Wkv7Params& p, Stream& stream) { RunWkv7<Ymm>(p, stream); }
void NormBonusGate(const NormBonusGateParams& p, Stream& stream) {
  RunNormBonusGate<Ymm>(p, stream);
}

}  // namespace skein::kernels::avx2
