// y = act(x W^T + bias) with weights in panels of 16 outputs. One rule makes results independent of
// the number of rows, of threads and of blocking: an output element is one chain of fused
// multiply-adds over k = 0 .. K-1, from zero, to which the bias is added at the end. (Between
// blocks of K the unfinished chain waits in y, exactly.)
//
// 1..6 rows: the weights stream through once; for a single row six panels side by side, so that
// enough chains are in flight.
// More rows: x is copied once into blocks of up to 6 rows, [K blocks][row blocks][k][rows], and a
// tile of 6 x 16 accumulators runs over blocks of weights that stay in a cache.

#include "kernels/cpu/number_format.h"
#include "kernels/cpu/ops_avx2.h"
#include "kernels/cpu/region.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/simd_avx2.h"

namespace skein::kernels::avx2 {
namespace {

constexpr int64_t kPanel = 16;       // outputs of a panel
constexpr int64_t kMaxRows = 6;      // rows of a tile: 12 of the 16 registers accumulate
constexpr int64_t kDepth = 256;      // K of a block: 8 or 16 KiB of weights
constexpr int64_t kBlockRows = 240;  // rows of x that go over one block of weights: 240 KiB
constexpr int64_t kAhead = 4096;     // bytes that one stream of weights is fetched ahead
constexpr int64_t kFewBlocks = 8;    // with so few row blocks a panel is read once, over all of K
constexpr auto kHint = _MM_HINT_T0;  // an enum of GCC, an int of clang
constexpr int kMaxGroup = 16;        // products of one parallel region

int64_t Panels(int64_t O) { return (O + kPanel - 1) / kPanel; }
int64_t Least(int64_t a, int64_t b) { return a < b ? a : b; }

// How a panel's 16 weights of one k are stored and widened: outputs 0..7 to `low`, 8..15 to `high`.
struct WideF32 {
  using Type = float;
  static void Load(const float* w, __m256* low, __m256* high) {
    *low = _mm256_load_ps(w);
    *high = _mm256_load_ps(w + 8);
  }
};
// Output j in the low half of 32-bit word j, output 8 + j in the high half: a shift and a mask
// widen them.
struct WideBF16 {
  using Type = uint16_t;
  static void Load(const uint16_t* w, __m256* low, __m256* high) {
    const __m256i both = _mm256_load_si256(reinterpret_cast<const __m256i*>(w));
    *low = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    *high = _mm256_castsi256_ps(
        _mm256_and_si256(both, _mm256_set1_epi32(static_cast<int32_t>(0xffff0000u))));
  }
};

__m256 Activate(__m256 v, Activation activation) {
  switch (activation) {
    case Activation::kTanh:
      return Tanh(v);
    case Activation::kSigmoid:
      return Sigmoid(v);
    case Activation::kReluSquared: {
      const __m256 positive = _mm256_max_ps(_mm256_setzero_ps(), v);  // this order keeps NaN
      return _mm256_mul_ps(positive, positive);
    }
    case Activation::kNone:
      break;
  }
  return v;
}

// A panel's 16 outputs of one row of y; the last panel of a matrix may have fewer.
void LoadOutputs(const float* y, int64_t outputs, __m256* v) {
  if (outputs >= kPanel) {
    v[0] = _mm256_loadu_ps(y);
    v[1] = _mm256_loadu_ps(y + 8);
    return;
  }
  v[0] = _mm256_maskload_ps(y, TailMask(Least(outputs, 8)));
  v[1] = outputs > 8 ? _mm256_maskload_ps(y + 8, TailMask(outputs - 8)) : _mm256_setzero_ps();
}

void StoreOutputs(float* y, int64_t outputs, const __m256* v) {
  if (outputs >= kPanel) {
    _mm256_storeu_ps(y, v[0]);
    _mm256_storeu_ps(y + 8, v[1]);
    return;
  }
  _mm256_maskstore_ps(y, TailMask(Least(outputs, 8)), v[0]);
  if (outputs > 8) _mm256_maskstore_ps(y + 8, TailMask(outputs - 8), v[1]);
}

// Adds the bias and applies the activation to finished sums.
void Finish(const MatmulParams& p, int64_t panel, __m256* v) {
  if (p.bias != nullptr) {
    __m256 bias[2];
    LoadOutputs(p.bias + panel * kPanel, p.w.O - panel * kPanel, bias);
    v[0] = _mm256_add_ps(v[0], bias[0]);
    v[1] = _mm256_add_ps(v[1], bias[1]);
  }
  if (p.activation == Activation::kNone) return;
  v[0] = Activate(v[0], p.activation);
  v[1] = Activate(v[1], p.activation);
}

// K steps of R rows by P panels. x is [K][R]; panel q's weights begin at w + q * panel_stride, and
// those `ahead` elements further on are fetched into the cache meanwhile. The sums live in
// registers inside the loop, for which the compiler must see every index as a constant.
template <int R, int P, typename Wide>
inline void Multiply(const float* x, const typename Wide::Type* w, int64_t panel_stride, int64_t K,
                     int64_t ahead, __m256 (*sums)[R][2]) {
  __m256 low_sums[P * R], high_sums[P * R];
#pragma GCC unroll 8
  for (int i = 0; i < P * R; ++i) {
    low_sums[i] = sums[i / R][i % R][0];
    high_sums[i] = sums[i / R][i % R][1];
  }
  for (int64_t k = 0; k < K; ++k) {
#pragma GCC unroll 8
    for (int q = 0; q < P; ++q) {
      __m256 low, high;
      _mm_prefetch(reinterpret_cast<const char*>(w + q * panel_stride + ahead), kHint);
      Wide::Load(w + q * panel_stride, &low, &high);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const __m256 value = _mm256_broadcast_ss(x + r);
        low_sums[q * R + r] = _mm256_fmadd_ps(value, low, low_sums[q * R + r]);
        high_sums[q * R + r] = _mm256_fmadd_ps(value, high, high_sums[q * R + r]);
      }
    }
    x += R;
    w += kPanel;
  }
#pragma GCC unroll 8
  for (int i = 0; i < P * R; ++i) {
    sums[i / R][i % R][0] = low_sums[i];
    sums[i / R][i % R][1] = high_sums[i];
  }
}

// One tile of y: R rows from `row` on, P panels from `panel` on, over k in [k0, k0 + depth). `x` is
// the tile's block.
template <int R, int P, typename Wide>
void Tile(const MatmulParams& p, const float* x, int64_t row, int64_t panel, int64_t k0,
          int64_t depth) {
  const int64_t K = p.w.K, stride = K * kPanel;
  const auto* w = static_cast<const typename Wide::Type*>(p.w.data) + panel * stride + k0 * kPanel;
  __m256 sums[P][R][2];
  for (int q = 0; q < P; ++q) {
    for (int r = 0; r < R; ++r) {
      sums[q][r][0] = sums[q][r][1] = _mm256_setzero_ps();
      if (k0 == 0) continue;
      const int64_t o = (panel + q) * kPanel;
      LoadOutputs(p.y + (row + r) * p.y_stride + o, p.w.O - o, sums[q][r]);
    }
  }
  // Few rows stream through the weights; many stay on a block, and the next one is the next
  // panel's.
  const int64_t ahead = p.T > kMaxRows ? stride : kAhead / static_cast<int64_t>(sizeof *w);
  Multiply<R, P, Wide>(x, w, stride, depth, ahead, sums);
  for (int q = 0; q < P; ++q) {
    const int64_t o = (panel + q) * kPanel;
    for (int r = 0; r < R; ++r) {
      if (k0 + depth == K) Finish(p, panel + q, sums[q][r]);
      StoreOutputs(p.y + (row + r) * p.y_stride + o, p.w.O - o, sums[q][r]);
    }
  }
}

template <typename Wide>
void TileOf(int64_t rows, const MatmulParams& p, const float* x, int64_t row, int64_t panel,
            int64_t k0, int64_t depth) {
  switch (rows) {
    case 1:
      return Tile<1, 1, Wide>(p, x, row, panel, k0, depth);
    case 2:
      return Tile<2, 1, Wide>(p, x, row, panel, k0, depth);
    case 3:
      return Tile<3, 1, Wide>(p, x, row, panel, k0, depth);
    case 4:
      return Tile<4, 1, Wide>(p, x, row, panel, k0, depth);
    case 5:
      return Tile<5, 1, Wide>(p, x, row, panel, k0, depth);
    default:
      return Tile<6, 1, Wide>(p, x, row, panel, k0, depth);
  }
}

// All K of R rows on panels [begin, end), P at a time.
template <int R, int P, typename Wide>
void Sweep(const MatmulParams& p, const float* x, int64_t begin, int64_t end) {
  for (; begin + P <= end; begin += P) Tile<R, P, Wide>(p, x, 0, begin, 0, p.w.K);
  for (; begin < end; ++begin) Tile<R, 1, Wide>(p, x, 0, begin, 0, p.w.K);
}

template <typename Wide>
void MultiplyFewRows(const MatmulParams& p, const float* x, int64_t begin, int64_t end) {
  switch (p.T) {
    case 1:
      return Sweep<1, 6, Wide>(p, x, begin, end);
    case 2:
      return Sweep<2, 1, Wide>(p, x, begin, end);
    case 3:
      return Sweep<3, 1, Wide>(p, x, begin, end);
    case 4:
      return Sweep<4, 1, Wide>(p, x, begin, end);
    case 5:
      return Sweep<5, 1, Wide>(p, x, begin, end);
    default:
      return Sweep<6, 1, Wide>(p, x, begin, end);
  }
}

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
// The K of one block of weights.
int64_t Depth(const MatmulParams& p) {
  return Blocks(p.T) <= kFewBlocks ? p.w.K : Least(kDepth, p.w.K);
}
int64_t BlockBegin(int64_t T, int64_t block) { return T * block / Blocks(T); }

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
