#include <ATen/ops/addmm.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mm.h>
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

struct Options {
  double l2wrap, norm, norm_rows;
  bool compute_bf16;
};

struct Result {
  at::Tensor loss, ce_sum, d_x, d_head;  // the gradients only when asked for
};

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

// The products of head and rows. In bf16 they are the tier's own where it has one, which rounds all
// its factors itself, the gradients of the logits too. Elsewhere x and head are rounded once and
// multiplied in the type of the computation: LibTorch's bf16 product would round the logits.
class Products {
 public:
  Products(const at::Tensor& x, const at::Tensor& head, bool bf16)
      : tier_(bf16 && HasTierProduct(x.scalar_type())),
        x_(Rounded(x, bf16 && !tier_)),
        head_(Rounded(head, bf16 && !tier_)) {}

  const at::Tensor& x() const { return x_; }
  const at::Tensor& head() const { return head_; }

  // c = a b
  void Multiply(const at::Tensor& a, const at::Tensor& b, at::Tensor c) const {
    if (tier_) return TierProduct(a, b, {}, c);
    at::mm_out(c, a, b);
  }
  // c += a b
  void Add(const at::Tensor& a, const at::Tensor& b, at::Tensor c) const {
    if (tier_) return AddTierProduct(a, b, c);
    at::addmm_out(c, c, a, b);
  }

 private:
  static at::Tensor Rounded(const at::Tensor& t, bool to_bf16) {
    return to_bf16 ? t.to(at::kBFloat16).to(t.scalar_type()) : t;
  }

  const bool tier_;
  const at::Tensor x_, head_;
};

template <class Real>
Result Run(const at::Tensor& x_in, const at::Tensor& head_in, const at::Tensor& labels,
           const OptionalTensor& weights, const Options& options, bool gradient) {
  const Products products(x_in, head_in, options.compute_bf16);
  const at::Tensor &x = products.x(), &head = products.head();
  const int64_t rows = x.size(0), V = head.size(0),
                chunk = std::min(std::max<int64_t>(rows, 1), ChunkRows(V));
  const int64_t* label = Data<int64_t>(labels);
  const Real* weight = Data<Real>(weights);
  const auto [used, weight_sum] = CountRows(label, weight, rows, V);
  const double W = options.norm > 0 ? options.norm : weight_sum;
  const double n = options.norm_rows > 0 ? options.norm_rows : static_cast<double>(used);
  // Nothing counts: the loss is zero, and so are the gradients.
  const double inv_norm = W != 0 ? 1 / W : 0, inv_rows = n > 0 ? 1 / n : 0;

  Result out;
  if (gradient) {
    out.d_x = at::empty_like(x);
    out.d_head = at::zeros_like(head);
  }
  const at::Tensor logits = at::empty({chunk, V}, x.options());
  std::vector<double> ce(chunk), squares(chunk);
  double loss_sum = 0, square_sum = 0;
  for (int64_t first = 0; first < rows; first += chunk) {
    const int64_t count = std::min(chunk, rows - first);
    const at::Tensor part = logits.narrow(0, 0, count), x_part = x.narrow(0, first, count);
    products.Multiply(x_part, head.t(), part);
    train::CrossEntropyArgs<Real> p;
    p.V = V, p.labels = label + first, p.weights = weight != nullptr ? weight + first : nullptr;
    p.inv_norm = inv_norm, p.l2 = options.l2wrap * inv_rows, p.gradient = gradient;
    p.logits = Out<Real>(part), p.ce = ce.data(), p.max_squared = squares.data();
    const auto& ops = train::ActiveTrainOps<Real>();
    ParallelRange(count, 8, [&](int64_t begin, int64_t end) { ops.cross_entropy(p, begin, end); });
    for (int64_t i = 0; i < count; ++i) {
      loss_sum += (p.weights != nullptr ? p.weights[i] : 1) * ce[i];
      square_sum += squares[i];
    }
    if (!gradient) continue;
    products.Multiply(part, head, out.d_x.narrow(0, first, count));
    products.Add(part.t(), x_part, out.d_head);
  }
  const double loss = loss_sum * inv_norm + 0.5 * options.l2wrap * square_sum * inv_rows;
  out.loss = at::full({}, loss, x.options());
  out.ce_sum = at::full({}, loss_sum, x.options());
  return out;
}

Result Forward(const at::Tensor& x, const at::Tensor& head, const at::Tensor& labels,
               const OptionalTensor& weights, const Options& options, bool gradient) {
  TORCH_CHECK(x.dim() == 2 && head.dim() == 2,
              "skein::head_cross_entropy: x must be [rows, C] and head [V, C], got ", x.sizes(),
              " and ", head.sizes());
  const auto type = x.scalar_type();
  const int64_t rows = x.size(0), C = x.size(1), V = head.size(0);
  TORCH_CHECK(V > 0 && C > 0, "skein::head_cross_entropy: head is empty");
  return DispatchReal(x, "head_cross_entropy", [&]<class Real>() {
    return Run<Real>(Checked(x, "x", type, {rows, C}), Checked(head, "head", type, {V, C}),
                     Checked(labels, "labels", at::kLong, {rows}),
                     Checked(weights, "weights", type, {rows}), options, gradient);
  });
}

std::tuple<at::Tensor, at::Tensor> Cpu(const at::Tensor& x, const at::Tensor& head,
                                       const at::Tensor& labels, const OptionalTensor& weights,
                                       double l2wrap, double norm, double norm_rows,
                                       bool compute_bf16) {
  const Result out =
      Forward(x, head, labels, weights, {l2wrap, norm, norm_rows, compute_bf16}, false);
  return {out.loss, out.ce_sum};
}

class HeadCrossEntropyFunction : public torch::autograd::Function<HeadCrossEntropyFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& head,
                               const at::Tensor& labels, const OptionalTensor& weights,
                               double l2wrap, double norm, double norm_rows, bool compute_bf16) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const Result out =
        Forward(x, head, labels, weights, {l2wrap, norm, norm_rows, compute_bf16}, true);
    ctx->mark_non_differentiable({out.ce_sum});
    ctx->save_for_backward({out.d_x, out.d_head});
    return {out.loss, out.ce_sum};
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

std::tuple<at::Tensor, at::Tensor> HeadCrossEntropy(const at::Tensor& x, const at::Tensor& head,
                                                    const at::Tensor& labels,
                                                    const std::optional<at::Tensor>& weights,
                                                    double l2wrap, double norm, double norm_rows,
                                                    bool compute_bf16) {
  static const auto op = FindOperator<decltype(HeadCrossEntropy)>("skein::head_cross_entropy");
  return op.call(x, head, labels, weights, l2wrap, norm, norm_rows, compute_bf16);
}

}  // namespace skein::kernels
