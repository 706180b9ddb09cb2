#include "trainer/batches.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "engine/tokenizer.h"

namespace skein::trainer {
namespace {

Row ReadRow(const TokenStream& stream, int64_t offset, int64_t T) {
  Row row;
  const int64_t n = std::min(T + 1, stream.size() - offset);
  row.tokens.resize(static_cast<size_t>(n));
  row.weights.resize(static_cast<size_t>(n));
  stream.Read(offset, n, row.tokens.data());
  stream.ReadWeights(offset, n, row.weights.data());
  return row;
}

}  // namespace

Batch MakeBatch(const std::vector<Row>& rows, int64_t T, bool document_reset) {
  const int64_t B = static_cast<int64_t>(rows.size());
  Batch batch;
  batch.tokens = at::zeros({B, T}, at::kLong);
  batch.labels = at::full({B * T}, kIgnoredLabel, at::kLong);
  batch.weights = at::zeros({B * T}, at::kFloat);
  batch.reset = at::zeros({B, T}, at::kBool);
  int64_t* tokens = batch.tokens.mutable_data_ptr<int64_t>();
  int64_t* labels = batch.labels.mutable_data_ptr<int64_t>();
  float* weights = batch.weights.mutable_data_ptr<float>();
  bool* reset = batch.reset.mutable_data_ptr<bool>();
  bool plain = true, any_reset = false;
  for (int64_t b = 0; b < B; ++b) {
    const Row& row = rows[static_cast<size_t>(b)];
    const int64_t n = std::min<int64_t>(T, static_cast<int64_t>(row.tokens.size()) - 1);
    for (int64_t t = 0; t < n; ++t) {
      const int64_t at = b * T + t;
      tokens[at] = row.tokens[static_cast<size_t>(t)];
      reset[at] = t > 0 && row.tokens[static_cast<size_t>(t) - 1] == engine::kEndOfDocument;
      any_reset |= reset[at];
      const float weight = row.weights[static_cast<size_t>(t) + 1];
      if (weight == 0) continue;
      labels[at] = row.tokens[static_cast<size_t>(t) + 1];
      weights[at] = weight;
      plain &= weight == 1;
      ++batch.used;
      batch.weight_sum += weight;
    }
  }
  if (plain) batch.weights = at::Tensor();
  if (!document_reset || !any_reset) batch.reset = at::Tensor();
  return batch;
}

WindowSource::WindowSource(TokenStream stream, Sampler sampler, int64_t T, bool document_reset)
    : stream_(std::move(stream)), sampler_(sampler), T_(T), document_reset_(document_reset) {}

Batch WindowSource::Get(int64_t first, int64_t B) const {
  std::vector<Row> rows;
  for (int64_t b = 0; b < B; ++b) rows.push_back(ReadRow(stream_, sampler_.Offset(first + b), T_));
  return MakeBatch(rows, T_, document_reset_);
}

std::vector<Batch> ValidationBatches(const TokenStream& stream, int64_t T, int64_t B,
                                     int64_t max_windows, bool document_reset) {
  const int64_t windows = (stream.size() - 1 + T - 1) / T;
  const int64_t wanted = max_windows > 0 ? std::min(windows, max_windows) : windows;
  std::vector<Batch> batches;
  std::vector<Row> rows;
  for (int64_t i = 0; i < wanted; ++i) {
    rows.push_back(ReadRow(stream, i * windows / wanted * T, T));
    if (static_cast<int64_t>(rows.size()) == B || i + 1 == wanted) {
      batches.push_back(MakeBatch(rows, T, document_reset));
      rows.clear();
    }
  }
  return batches;
}

}  // namespace skein::trainer
