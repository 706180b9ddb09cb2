#include <ATen/ops/full.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "kernels/torch/common.h"
#include "kernels/torch/product.h"
#include "kernels/torch_ops.h"

namespace skein::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Rows of one chunk: about 4 MiB of logits, a multiple of 64 so that blocks of rows stay the same.
int64_t ChunkRows(int64_t V) { return std::clamp<int64_t>((1 << 20) / V / 64 * 64, 64, 4096); }

// Number of rows that count, and the sum of their weights.
template <class Real>
std::pair<int64_t, double> CountRows(const int64_t* labels, const Real* weights, int64_t rows,
                                     int64_t V) {
  int64_t used = 0;
  double sum = 0;
  for (int64_t i = 0; i < rows; ++i) {
    if (labels[i] == -100) continue;
    TORCH_CHECK(labels[i] >= 0 && labels[i] < V, "skein::head_cross_entropy: label ", labels[i],
                " of row ", i, " is neither in [0, ", V, ") nor -100");
    ++used;
    sum += weights != nullptr ? weights[i] : 1;
  }
  return {used, sum};
}

// The products of head and rows round all their factors, the gradients of the logits too, where the
// tier has a product of its own. Elsewhere x and head are rounded once and multiplied in the type
// of the computation: LibTorch's bf16 product would round the logits.
at::Tensor Rounded(const at::Tensor& t) { return t.to(at::kBFloat16).to(t.scalar_type()); }

template <class Real>
void RunAll(operators::HeadCrossEntropy* op, const at::Tensor& d_head) {
  const bool tier = op->bf16 && HasTierProduct(op->x.scalar_type()), round = op->bf16 && !tier,
             gradient = d_head.defined();
  const at::Tensor x = round ? Rounded(op->x) : op->x, head = round ? Rounded(op->head) : op->head;
  const int64_t rows = x.size(0), V = head.size(0),
                chunk = std::min(std::max<int64_t>(rows, 1), ChunkRows(V));
  const int64_t* label = Data<int64_t>(op->labels);
  const Real* weight = Data<Real>(op->weights);
  const auto [used, weight_sum] = CountRows(label, weight, rows, V);
  const double W = op->norm > 0 ? op->norm : weight_sum;
  const double n = op->norm_rows > 0 ? op->norm_rows : static_cast<double>(used);
  // Nothing counts: the loss is zero, and so are the gradients.
  const double inv_norm = W != 0 ? 1 / W : 0, inv_rows = n > 0 ? 1 / n : 0;

  if (gradient) operators::Size(&op->d_x, x.sizes(), x.options());
  operators::Size(&op->logits, {chunk, V}, x.options());
  op->ce.resize(chunk), op->squares.resize(chunk);
  double loss_sum = 0, square_sum = 0;
  for (int64_t first = 0; first < rows; first += chunk) {
    const int64_t count = std::min(chunk, rows - first);
    const at::Tensor logits = op->logits.narrow(0, 0, count), part = x.narrow(0, first, count);
    Multiply({part}, Transposed(head), {}, tier, logits);
    train::CrossEntropyArgs<Real> p;
    p.V = V, p.labels = label + first, p.weights = weight != nullptr ? weight + first : nullptr;
    p.inv_norm = inv_norm, p.l2 = op->l2wrap * inv_rows, p.gradient = gradient;
    p.logits = Out<Real>(logits), p.ce = op->ce.data(), p.max_squared = op->squares.data();
    const auto& ops = train::ActiveTrainOps<Real>();
    ParallelRange(count, 8, [&](int64_t begin, int64_t end) { ops.cross_entropy(p, begin, end); });
    for (int64_t i = 0; i < count; ++i) {
      loss_sum += (p.weights != nullptr ? p.weights[i] : 1) * op->ce[i];
      square_sum += op->squares[i];
    }
    if (!gradient) continue;
    Multiply({logits}, {head}, {}, tier, op->d_x.narrow(0, first, count));
    AddProduct(Transposed(logits), {part}, tier, d_head);
  }
  op->loss = loss_sum * inv_norm + 0.5 * op->l2wrap * square_sum * inv_rows;
  op->ce_sum = loss_sum;
}

operators::HeadCrossEntropy Check(const at::Tensor& x, const at::Tensor& head,
                                  const at::Tensor& labels, const OptionalTensor& weights,
                                  double l2wrap, double norm, double norm_rows, bool bf16) {
  TORCH_CHECK(x.dim() == 2 && head.dim() == 2,
              "skein::head_cross_entropy: x must be [rows, C] and head [V, C], got ", x.sizes(),
              " and ", head.sizes());
  const auto type = x.scalar_type();
  const int64_t rows = x.size(0), C = x.size(1), V = head.size(0);
  TORCH_CHECK(V > 0 && C > 0, "skein::head_cross_entropy: head is empty");
  operators::HeadCrossEntropy op;
  op.x = Checked(x, "x", type, {rows, C}), op.head = Checked(head, "head", type, {V, C});
  op.labels = Checked(labels, "labels", at::kLong, {rows});
  op.weights = Checked(weights, "weights", type, {rows});
  op.l2wrap = l2wrap, op.norm = norm, op.norm_rows = norm_rows, op.bf16 = bf16;
  return op;
}

at::Tensor Scalar(double value, const at::Tensor& like) {
  return at::full({}, value, like.options());
}

std::tuple<at::Tensor, at::Tensor> Cpu(const at::Tensor& x, const at::Tensor& head,
                                       const at::Tensor& labels, const OptionalTensor& weights,
                                       double l2wrap, double norm, double norm_rows,
                                       bool compute_bf16) {
  operators::HeadCrossEntropy op =
      Check(x, head, labels, weights, l2wrap, norm, norm_rows, compute_bf16);
  op.Run({});
  return {Scalar(op.loss, x), Scalar(op.ce_sum, x)};
}

class HeadCrossEntropyFunction : public torch::autograd::Function<HeadCrossEntropyFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& head,
                               const at::Tensor& labels, const OptionalTensor& weights,
                               double l2wrap, double norm, double norm_rows, bool compute_bf16) {
    at::AutoDispatchBelowADInplaceOrView guard;
    operators::HeadCrossEntropy op =
        Check(x, head, labels, weights, l2wrap, norm, norm_rows, compute_bf16);
    const at::Tensor d_head = at::zeros_like(op.head);
    op.Run(d_head);
    const at::Tensor loss = Scalar(op.loss, x), ce_sum = Scalar(op.ce_sum, x);
    ctx->mark_non_differentiable({ce_sum});
    ctx->save_for_backward({op.d_x, d_head});
    return {loss, ce_sum};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const BackwardScope scope("head_cross_entropy");
    const variable_list saved = ctx->get_saved_variables();
    variable_list d(8);
    d[0] = at::mul(saved[0], grads[0]);
    d[1] = at::mul(saved[1], grads[0]);
    return d;
  }
};

std::tuple<at::Tensor, at::Tensor> Differentiable(const at::Tensor& x, const at::Tensor& head,
                                                  const at::Tensor& labels,
                                                  const OptionalTensor& weights, double l2wrap,
                                                  double norm, double norm_rows,
                                                  bool compute_bf16) {
  if (!at::GradMode::is_enabled() || !(x.requires_grad() || head.requires_grad())) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return Cpu(x, head, labels, weights, l2wrap, norm, norm_rows, compute_bf16);
  }
  variable_list out = HeadCrossEntropyFunction::apply(x, head, labels, weights, l2wrap, norm,
                                                      norm_rows, compute_bf16);
  return {out[0], out[1]};
}

TORCH_LIBRARY_IMPL(skein, CPU, m) { m.impl("head_cross_entropy", Cpu); }
TORCH_LIBRARY_IMPL(skein, Autograd, m) { m.impl("head_cross_entropy", Differentiable); }

}  // namespace

void operators::HeadCrossEntropy::Run(const at::Tensor& d_head) {
  DispatchReal(x, "head_cross_entropy", [&]<class Real>() { RunAll<Real>(this, d_head); });
}

std::tuple<at::Tensor, at::Tensor> HeadCrossEntropy(const at::Tensor& x, const at::Tensor& head,
                                                    const at::Tensor& labels,
                                                    const std::optional<at::Tensor>& weights,
                                                    double l2wrap, double norm, double norm_rows,
                                                    bool compute_bf16) {
  static const auto op = FindOperator<decltype(HeadCrossEntropy)>("skein::head_cross_entropy");
  return op.call(x, head, labels, weights, l2wrap, norm, norm_rows, compute_bf16);
}

}  // namespace skein::kernels
