#include "trainer/evaluate.h"

#include <c10/core/GradMode.h>

#include <array>
#include <cmath>

#include "kernels/torch_ops.h"

namespace skein::trainer {
namespace {

at::Tensor HiddenRows(const Rwkv7& model, const Batch& batch, ForwardOptions options) {
  if (batch.reset.defined()) options.reset = batch.reset;
  return model.Hidden(batch.tokens, options).view({-1, model.sizes().C});
}

std::optional<at::Tensor> Weights(const Batch& batch) {
  return batch.weights.defined() ? std::optional<at::Tensor>(batch.weights) : std::nullopt;
}

double CrossEntropySum(const Rwkv7& model, const at::Tensor& hidden, const Batch& batch,
                       const std::optional<at::Tensor>& weights) {
  return std::get<1>(kernels::HeadCrossEntropy(hidden, model.head(), batch.labels, weights, 0, 1, 1,
                                               model.compute_bf16()))
      .item<double>();
}

double LabelBytes(const engine::Tokenizer& tokenizer, const Batch& batch) {
  double bytes = 0;
  const int64_t* labels = batch.labels.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < batch.labels.numel(); ++i) {
    if (labels[i] >= 0)
      bytes += static_cast<double>(tokenizer.Bytes(static_cast<int32_t>(labels[i])).size());
  }
  return bytes;
}

}  // namespace

std::pair<at::Tensor, double> BatchLoss(const Rwkv7& model, const Batch& batch,
                                        ForwardOptions options, double l2wrap,
                                        const LossDenominators& d) {
  const at::Tensor hidden = HiddenRows(model, batch, std::move(options));
  auto [loss, sum] = kernels::HeadCrossEntropy(hidden, model.head(), batch.labels, Weights(batch),
                                               l2wrap, d.weights, d.rows, model.compute_bf16());
  return {loss, sum.item<double>()};
}

Evaluation Evaluate(const Rwkv7& model, const engine::Tokenizer& tokenizer,
                    const std::vector<Batch>& batches, DataParallel* processes) {
  c10::AutoGradMode off(false);
  std::array<double, 5> sums{};
  auto& [weighted, weight, plain, bytes, tokens] = sums;
  for (size_t i = processes->rank(); i < batches.size(); i += processes->size()) {
    const Batch& batch = batches[i];
    if (batch.used == 0) continue;
    const at::Tensor hidden = HiddenRows(model, batch, {});
    const double sum = CrossEntropySum(model, hidden, batch, Weights(batch));
    weighted += sum;
    weight += batch.weight_sum;
    plain += batch.weights.defined() ? CrossEntropySum(model, hidden, batch, std::nullopt) : sum;
    bytes += LabelBytes(tokenizer, batch);
    tokens += static_cast<double>(batch.used);
  }
  processes->Sum(absl::MakeSpan(sums));
  Evaluation result;
  result.tokens = static_cast<int64_t>(tokens);
  if (weight > 0) result.loss = weighted / weight;
  if (bytes > 0) result.bits_per_byte = plain / std::log(2.0) / bytes;
  return result;
}

}  // namespace skein::trainer
