// y = act(x W^T + bias) with weights in panels of 16 outputs. One rule makes results independent of
// the number of rows, of threads and of blocking: an output element is one chain of fused
// multiply-adds over k = 0 .. K-1, from zero, to which the bias is added at the end. (Between
// blocks of K the unfinished chain waits in y, exactly.)
//
// 1..6 rows: the weights stream through once; for a single row six panels side by side, so that
// enough chains are in flight.
// More rows: x is copied once into blocks of up to 6 rows, [K blocks][row blocks][k][rows], and a
// tile of 6 x 16 accumulators runs over blocks of weights that stay in a cache.

#include "kernels/cpu/matmul_tile_avx2.h"
#include "kernels/cpu/number_format.h"
#include "kernels/cpu/ops_avx2.h"
#include "kernels/cpu/region.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/simd_avx2.h"

namespace skein::kernels::avx2 {
namespace {

constexpr int64_t kDepth = 256;      // K of a block: 8 or 16 KiB of weights
constexpr int64_t kBlockRows = 240;  // rows of x that go over one block of weights: 240 KiB
constexpr int64_t kFewBlocks = 8;    // with so few row blocks a panel is read once, over all of K
constexpr int kMaxGroup = 16;        // products of one parallel region

// Eight columns of up to eight rows, transposed: v[k] holds column k.
void Transpose(__m256 (&v)[8]) {
  __m256 t[8], u[8];
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(v[2 * i], v[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(v[2 * i], v[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm256_permute2f128_ps(u[i], u[4 + i], 0x20);
    v[4 + i] = _mm256_permute2f128_ps(u[i], u[4 + i], 0x31);
  }
}

// to[k][r] = x[r][k] for `depth` k and `rows` (1..6) rows, rounded when the weights are bf16.
void PackBlock(const float* x, int64_t stride, int64_t rows, int64_t depth, bool round, float* to) {
  int64_t k = 0;
  // Eight lanes are stored per k; what lies beyond the rows is overwritten by the next k, so the
  // last few k are left to the loop below.
  for (; (k + 7) * rows + 8 <= depth * rows; k += 8) {
    __m256 v[8];
    for (int64_t r = 0; r < 8; ++r)
      v[r] = r < rows ? _mm256_loadu_ps(x + r * stride + k) : _mm256_setzero_ps();
    if (round) {
      for (int64_t r = 0; r < kMaxRows; ++r) v[r] = RoundToBF16(v[r]);
    }
    Transpose(v);
    for (int64_t j = 0; j < 8; ++j) _mm256_storeu_ps(to + (k + j) * rows, v[j]);
  }
  for (; k < depth; ++k) {
    for (int64_t r = 0; r < rows; ++r) {
      const float value = x[r * stride + k];
      to[k * rows + r] = round ? FromBF16(ToBF16(value)) : value;
    }
  }
}

// One distinct x of a group and its packed copy.
struct Input {
  const MatmulParams* p = nullptr;  // a product that reads it
  int64_t begin = 0;                // on the line of all packing work
  float* packed = nullptr;
};

// A product and its place on the line of all panels' work, in units of one k of one panel.
struct Product {
  const MatmulParams* p = nullptr;
  int64_t begin = 0;
  int input = -1;
};

struct Group {
  Product products[kMaxGroup];
  Input inputs[kMaxGroup];
  int num_products = 0, num_inputs = 0;
  int64_t panel_work = 0, pack_work = 0;
};

// Rows of block b when T rows are dealt evenly to ceil(T / 6) blocks.
int64_t Blocks(int64_t T) { return (T + kMaxRows - 1) / kMaxRows; }
int64_t BlockBegin(int64_t T, int64_t block) { return T * block / Blocks(T); }

// The K of one block of weights.
int64_t Depth(const MatmulParams& p) {
  return Blocks(p.T) <= kFewBlocks ? p.w.K : Least(kDepth, p.w.K);
}

// Packs row blocks [begin, end) of one x.
void PackRows(const Input& input, int64_t begin, int64_t end) {
  const MatmulParams& p = *input.p;
  const int64_t T = p.T, K = p.w.K;
  for (int64_t block = begin; block < end; ++block) {
    const int64_t row = BlockBegin(T, block), rows = BlockBegin(T, block + 1) - row;
    for (int64_t k = 0; k < K; k += Depth(p)) {
      const int64_t depth = Least(Depth(p), K - k);
      PackBlock(p.x + row * p.x_stride + k, p.x_stride, rows, depth, p.w.dtype == DType::kBF16,
                input.packed + k * T + row * depth);
    }
  }
}

// Many rows on panels [begin, end).
template <typename Wide>
void MultiplyManyRows(const MatmulParams& p, const float* x, int64_t begin, int64_t end) {
  const int64_t T = p.T, K = p.w.K, blocks = Blocks(T), step = kBlockRows / kMaxRows;
  for (int64_t first = 0; first < blocks; first += step) {
    const int64_t last = Least(first + step, blocks);
    for (int64_t k = 0; k < K; k += Depth(p)) {
      const int64_t depth = Least(Depth(p), K - k);
      for (int64_t panel = begin; panel < end; ++panel) {
        for (int64_t block = first; block < last; ++block) {
          const int64_t row = BlockBegin(T, block), rows = BlockBegin(T, block + 1) - row;
          TileOf<Wide>(rows, p, x + k * T + row * depth, row, panel, k, depth);
        }
      }
    }
  }
}

// Panels [begin, end) of one product with packed x.
template <typename Wide>
void RunPanels(const MatmulParams& p, const float* x, int64_t begin, int64_t end) {
  if (p.T > kMaxRows) {
    MultiplyManyRows<Wide>(p, x, begin, end);
  } else {
    MultiplyFewRows<Wide>(p, x, begin, end);
  }
}

// The panels whose work begins in [begin, end).
void RunPiece(const Group& group, int64_t begin, int64_t end) {
  for (int i = 0; i < group.num_products; ++i) {
    const Product& product = group.products[i];
    const MatmulParams& p = *product.p;
    const float* x = group.inputs[product.input].packed;
    const ItemRange panels = ItemsIn(product.begin, p.w.K, Panels(p.w.O), begin, end);
    if (panels.first == panels.last) continue;
    if (p.w.dtype == DType::kBF16) {
      RunPanels<WideBF16>(p, x, panels.first, panels.last);
    } else {
      RunPanels<WideF32>(p, x, panels.first, panels.last);
    }
  }
}

bool SameInput(const MatmulParams& a, const MatmulParams& b) {
  return a.x == b.x && a.x_stride == b.x_stride && a.T == b.T && a.w.K == b.w.K &&
         a.w.dtype == b.w.dtype;
}

int FindOrAddInput(const MatmulParams& p, Group* group) {
  for (int i = 0; i < group->num_inputs; ++i) {
    if (SameInput(*group->inputs[i].p, p)) return i;
  }
  group->inputs[group->num_inputs] = {&p, group->pack_work, nullptr};
  group->pack_work += Blocks(p.T) * p.w.K;
  return group->num_inputs++;
}

// Packs every distinct x of the group into this thread's scratch memory.
void PackInputs(Group* group, Stream& stream) {
  int64_t floats = 0;
  for (int i = 0; i < group->num_inputs; ++i)
    floats += int64_t{group->inputs[i].p->T} * group->inputs[i].p->w.K;
  float* next = ThreadScratch(floats);
  for (int i = 0; i < group->num_inputs; ++i) {
    group->inputs[i].packed = next;
    next += int64_t{group->inputs[i].p->T} * group->inputs[i].p->w.K;
  }
  ForRange(stream, group->pack_work, GrainFor(0.3 * kMaxRows), [group](int64_t begin, int64_t end) {
    for (int i = 0; i < group->num_inputs; ++i) {
      const Input& input = group->inputs[i];
      const ItemRange blocks = ItemsIn(input.begin, input.p->w.K, Blocks(input.p->T), begin, end);
      PackRows(input, blocks.first, blocks.last);
    }
  });
}

void RunGroup(const MatmulParams* params, int n, Stream& stream) {
  Group group;
  int64_t rows = 0;
  for (int i = 0; i < n; ++i) {
    const MatmulParams& p = params[i];
    if (p.T <= 0) continue;
    group.products[group.num_products++] = {&p, group.panel_work, FindOrAddInput(p, &group)};
    group.panel_work += Panels(p.w.O) * p.w.K;
    rows = rows > p.T ? rows : p.T;
  }
  PackInputs(&group, stream);
  // A unit is 32 or 64 bytes of weights and 16 multiply-adds for each row.
  ForRange(stream, group.panel_work, GrainFor(rows > 4 ? 0.3 * rows : 1.5),
           [&group](int64_t begin, int64_t end) { RunPiece(group, begin, end); });
}

// 16 outputs of one k, from `o` on, in the order that Wide* reads.
void PackWeights(const PackParams& p, int64_t o, int64_t k, void* to) {
  for (int64_t j = 0; j < kPanel; ++j) {
    const float value = o + j < p.O ? LoadSource(p, o + j, k) : 0.0f;
    if (p.dtype == DType::kF32) {
      static_cast<float*>(to)[j] = value;
    } else {
      static_cast<uint16_t*>(to)[j < 8 ? 2 * j : 2 * (j - 8) + 1] = ToBF16(value);
    }
  }
}

}  // namespace

int64_t PackedBytes(int32_t O, int32_t K, DType dtype) {
  return Panels(O) * kPanel * K * SizeOf(dtype);
}

void Pack(const PackParams& p, Stream& stream) {
  const int64_t K = p.K, bytes = kPanel * SizeOf(p.dtype);
  ForRange(stream, Panels(p.O), GrainFor(20.0 * K), [&p, K, bytes](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      for (int64_t k = 0; k < K; ++k) {
        PackWeights(p, panel * kPanel, k, static_cast<char*>(p.out) + (panel * K + k) * bytes);
      }
    }
  });
}

void Matmul(const MatmulParams* params, int n, Stream& stream) {
  for (; n > 0; params += kMaxGroup, n -= kMaxGroup) {
    RunGroup(params, n < kMaxGroup ? n : kMaxGroup, stream);
  }
}

}  // namespace skein::kernels::avx2
