#pragma once
// What one forward pass reads. A source is a pure function of the sample's number.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "trainer/sampler.h"
#include "trainer/tokens.h"

namespace skein::trainer {

inline constexpr int64_t kIgnoredLabel = -100;

struct Batch {
  at::Tensor tokens;   // int64 [B, T]
  at::Tensor labels;   // int64 [B * T]; kIgnoredLabel where there is nothing to learn
  at::Tensor weights;  // fp32 [B * T]; undefined: all 1
  at::Tensor reset;    // bool [B, T]; undefined: no document starts inside
  int64_t used = 0;    // labels that are not ignored
  double weight_sum = 0;
};

struct LossDenominators {
  double weights = 1, rows = 1;  // of all batches of an optimizer step
};

// One row: tokens[0..T] (T + 1 of them, or fewer: the rest is padded and ignored) and the loss
// weight of each.
struct Row {
  std::vector<int32_t> tokens;
  std::vector<float> weights;  // as long as tokens; weights[0] is not used
};

Batch MakeBatch(const std::vector<Row>& rows, int64_t T, bool document_reset);

class BatchSource {
 public:
  virtual ~BatchSource() = default;
  // Samples [first, first + B).
  virtual Batch Get(int64_t first, int64_t B) const = 0;
};

// Windows of a token stream, chosen by a sampler.
class WindowSource final : public BatchSource {
 public:
  WindowSource(TokenStream stream, Sampler sampler, int64_t T, bool document_reset);
  Batch Get(int64_t first, int64_t B) const override;

 private:
  const TokenStream stream_;
  const Sampler sampler_;
  const int64_t T_;
  const bool document_reset_;
};

// Non-overlapping windows of all of `stream`, in order; the last one may be shorter. At most
// `max_windows` (0: all), spread evenly.
std::vector<Batch> ValidationBatches(const TokenStream& stream, int64_t T, int64_t B,
                                     int64_t max_windows, bool document_reset);

}  // namespace skein::trainer
