#pragma once
// Validation: cross-entropy (no L2Wrap) over batches, each row from the zero state.

#include <cstdint>
#include <utility>
#include <vector>

#include "engine/tokenizer.h"
#include "trainer/batches.h"
#include "trainer/data_parallel.h"
#include "trainer/models/rwkv7.h"

namespace skein::trainer {

struct Evaluation {
  double loss = 0;           // nats per token, weighted as the training loss is
  double bits_per_byte = 0;  // of the text whose tokens are counted in the loss
  int64_t tokens = 0;
};

// The processes share the batches among them; all get the whole result.
Evaluation Evaluate(const Rwkv7& model, const engine::Tokenizer& tokenizer,
                    const std::vector<Batch>& batches, DataParallel* processes);

// The training loss of one batch (its share, when there are several), to be differentiated by
// autograd, and its weighted sum of cross-entropies: the specification of Rwkv7Step
// (models/rwkv7_step.h), which trains.
std::pair<at::Tensor, double> BatchLoss(const Rwkv7& model, const Batch& batch,
                                        ForwardOptions options, double l2wrap,
                                        const LossDenominators& denominators);

}  // namespace skein::trainer
