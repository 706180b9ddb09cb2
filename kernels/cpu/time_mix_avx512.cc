// See time_mix_body.h.

#include "kernels/cpu/lanes_avx512.h"
#include "kernels/cpu/ops_avx512.h"
#include "kernels/cpu/time_mix_body.h"

namespace skein::kernels::avx512 {

void Prepare(const PrepareParams& p, Stream& stream) { RunPrepare<Zmm>(p, stream); }
void Wkv7(const Wkv7Params& p, Stream& stream) { RunWkv7<Zmm>(p, stream); }
void NormBonusGate(const NormBonusGateParams& p, Stream& stream) {
  RunNormBonusGate<Zmm>(p, stream);
}

}  // namespace skein::kernels::avx512
