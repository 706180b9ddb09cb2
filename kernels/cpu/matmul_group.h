#pragma once
// Several products in one parallel region, for matmul_*.cc only: lays the work of all of them out
// on one line and deals it to the threads. What a piece of it does is the kernel's, of which a tier
// has one for each type of weights. A kernel K says:
//
//   K::kPanel                            outputs of a panel, the unit in which weights are stored
//   K::PanelBytes(k)                     bytes of a panel of k inputs
//   K::PackPanel(p, panel, out)          packs one panel of weights
//   K::Blocks(t)                         blocks in which t rows of x are packed
//   K::InputBytes(t, k)                  bytes of a packed x, a multiple of 64
//   K::PackRows(p, begin, end, packed)   packs blocks [begin, end) of p.x
//   K::RunPanels(p, packed, begin, end)  panels [begin, end) of p.y
//   K::Nanoseconds(t)                    of t rows and one k of a panel, roughly
//
// and the tier T offers T::WithKernel(dtype, f), which returns f(K{}).
//
// Internal linkage on purpose: see number_format.h.

#include <xmmintrin.h>

#include <cstdint>

#include "kernels/cpu/number_format.h"
#include "kernels/cpu/region.h"
#include "kernels/cpu/scratch.h"
#include "kernels/ops.h"

namespace skein::kernels {
namespace {

constexpr int kMaxGroup = 16;  // products of one parallel region

// Weights are a stream from memory. They are fetched so many bytes ahead, and into the second cache
// only: it waits for more lines at a time than the first one has room for.
constexpr int64_t kFarAhead = 8192;
constexpr auto kFarHint = _MM_HINT_T1;  // an enum of GCC, an int of clang

inline int64_t Least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One distinct x of a group and its packed copy.
struct Input {
  const MatmulParams* p = nullptr;  // a product that reads it
  int64_t begin = 0;                // on the line of all packing work
  int64_t blocks = 0;
  char* packed = nullptr;
};

// A product and its place on the line of all panels' work, in units of one k of one panel.
struct Product {
  const MatmulParams* p = nullptr;
  int64_t begin = 0;
  int64_t panels = 0;
  int input = -1;
};

// A pair of rows and k's worth of packing, in nanoseconds.
constexpr double kPackNanoseconds = 0.15;

template <class T>
class Group {
 public:
  Group(const MatmulParams* params, int n) {
    for (int i = 0; i < n; ++i) {
      if (params[i].T > 0) Add(params[i]);
    }
  }

  void Run(Stream& stream) {
    if (num_products_ == 0) return;
    PackInputs(stream);
    ForRange(stream, panel_work_, GrainFor(nanoseconds_),
             [this](int64_t begin, int64_t end) { RunPiece(begin, end); });
  }

 private:
  static bool SameInput(const MatmulParams& a, const MatmulParams& b) {
    return a.x == b.x && a.x_stride == b.x_stride && a.T == b.T && a.w.K == b.w.K &&
           a.w.dtype == b.w.dtype;
  }

  void Add(const MatmulParams& p) {
    T::WithKernel(p.w.dtype, [&](auto kernel) {
      const int64_t panels = CeilDiv(p.w.O, kernel.kPanel);
      products_[num_products_++] = {&p, panel_work_, panels, FindOrAddInput(p, kernel.Blocks(p.T))};
      panel_work_ += panels * p.w.K;
      const double cost = kernel.Nanoseconds(p.T);
      if (cost > nanoseconds_) nanoseconds_ = cost;
    });
  }

  int FindOrAddInput(const MatmulParams& p, int64_t blocks) {
    for (int i = 0; i < num_inputs_; ++i) {
      if (SameInput(*inputs_[i].p, p)) return i;
    }
    inputs_[num_inputs_] = {&p, pack_work_, blocks, nullptr};
    pack_work_ += blocks * p.w.K;
    return num_inputs_++;
  }

  // Packs every distinct x of the group into this thread's scratch memory.
  void PackInputs(Stream& stream) {
    int64_t sizes[kMaxGroup], bytes = 0, rows = 0, blocks = 1;
    for (int i = 0; i < num_inputs_; ++i) {
      const MatmulParams& p = *inputs_[i].p;
      sizes[i] =
          T::WithKernel(p.w.dtype, [&p](auto kernel) { return kernel.InputBytes(p.T, p.w.K); });
      bytes += sizes[i];
      rows += p.T;
      blocks += inputs_[i].blocks;
    }
    char* next = reinterpret_cast<char*>(ThreadScratch(bytes / 4));
    for (int i = 0; i < num_inputs_; ++i) {
      inputs_[i].packed = next;
      next += sizes[i];
    }
    ForRange(stream, pack_work_, GrainFor(kPackNanoseconds * rows / blocks),
             [this](int64_t begin, int64_t end) { PackPiece(begin, end); });
  }

  void PackPiece(int64_t begin, int64_t end) {
    for (int i = 0; i < num_inputs_; ++i) {
      const Input& input = inputs_[i];
      const MatmulParams& p = *input.p;
      const ItemRange blocks = ItemsIn(input.begin, p.w.K, input.blocks, begin, end);
      if (blocks.first == blocks.last) continue;
      T::WithKernel(p.w.dtype, [&](auto kernel) {
        kernel.PackRows(p, blocks.first, blocks.last, input.packed);
      });
    }
  }

  // The panels whose work begins in [begin, end).
  void RunPiece(int64_t begin, int64_t end) {
    for (int i = 0; i < num_products_; ++i) {
      const Product& product = products_[i];
      const MatmulParams& p = *product.p;
      const ItemRange panels = ItemsIn(product.begin, p.w.K, product.panels, begin, end);
      if (panels.first == panels.last) continue;
      T::WithKernel(p.w.dtype, [&](auto kernel) {
        kernel.RunPanels(p, inputs_[product.input].packed, panels.first, panels.last);
      });
    }
  }

  Product products_[kMaxGroup];
  Input inputs_[kMaxGroup];
  int num_products_ = 0, num_inputs_ = 0;
  int64_t panel_work_ = 0, pack_work_ = 0;
  double nanoseconds_ = 0;  // of one unit of panel work
};

// What a tier's functions of ops_*.h do.

template <class T>
void RunMatmul(const MatmulParams* params, int n, Stream& stream) {
  for (; n > 0; params += kMaxGroup, n -= kMaxGroup) {
    Group<T>(params, n < kMaxGroup ? n : kMaxGroup).Run(stream);
  }
}

template <class T>
int64_t BytesOfPacked(int32_t O, int32_t K, DType dtype) {
  return T::WithKernel(
      dtype, [O, K](auto kernel) { return CeilDiv(O, kernel.kPanel) * kernel.PanelBytes(K); });
}

template <class T>
void RunPack(const PackParams& p, Stream& stream) {
  T::WithKernel(p.dtype, [&](auto kernel) {
    static_assert(kPackRows % kernel.kPanel == 0);
    const int64_t first = p.first / kernel.kPanel;
    ForRange(stream, CeilDiv(p.end(), kernel.kPanel) - first, GrainFor(1.0 * kernel.kPanel * p.K),
             [&p, kernel, first](int64_t begin, int64_t end) {
               const int64_t bytes = kernel.PanelBytes(p.K);
               for (int64_t panel = first + begin; panel < first + end; ++panel) {
                 kernel.PackPanel(p, panel, static_cast<char*>(p.out) + panel * bytes);
               }
             });
  });
}

}  // namespace
}  // namespace skein::kernels
