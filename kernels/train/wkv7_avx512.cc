// The chunked WKV-7 with AVX-512 products and decays: the rest is that of AVX2.

#include "kernels/train/avx512.h"
#include "kernels/train/simd_avx512.h"
#include "kernels/train/wkv7_avx2.h"

namespace skein::kernels::train {
namespace {

// kRows rows by kVectors vectors of C in registers: C = A B or C += A B.
template <int kRows, int kVectors>
void Tile(int64_t K, const float* A, int64_t a_row, int64_t a_col, const float* B, int64_t ldb,
          float* C, int64_t ldc, bool add) {
  __m512 c[kRows][kVectors];
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kVectors; ++j) {
      c[i][j] = add ? _mm512_loadu_ps(C + i * ldc + 16 * j) : _mm512_setzero_ps();
    }
  }
  for (int64_t k = 0; k < K; ++k) {
    __m512 b[kVectors];
    for (int j = 0; j < kVectors; ++j) b[j] = _mm512_loadu_ps(B + k * ldb + 16 * j);
    for (int i = 0; i < kRows; ++i) {
      const __m512 f = _mm512_set1_ps(A[i * a_row + k * a_col]);
      for (int j = 0; j < kVectors; ++j) c[i][j] = _mm512_fmadd_ps(f, b[j], c[i][j]);
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kVectors; ++j) _mm512_storeu_ps(C + i * ldc + 16 * j, c[i][j]);
  }
}

struct Avx512ChunkOps : Avx2ChunkOps {
  static void Decay(int64_t n, const float* w_raw, float* sigma, float* w) {
    for (int64_t i = 0; i < n; i += 16) {
      const __m512 s = Sigmoid(_mm512_loadu_ps(w_raw + i));
      _mm512_storeu_ps(sigma + i, s);
      _mm512_storeu_ps(w + i, Exp(_mm512_set1_ps(-Wkv7Chunk<Avx512ChunkOps>::kDecayScale) * s));
    }
  }
  static void Gemm(int64_t M, int64_t N, int64_t K, const float* A, int64_t a_row, int64_t a_col,
                   const float* B, int64_t ldb, float* C, int64_t ldc, bool add) {
    for (int64_t i = 0; i < M; i += 4) {
      const float* rows = A + i * a_row;
      int64_t j = 0;
      for (; j + 64 <= N; j += 64) {
        Tile<4, 4>(K, rows, a_row, a_col, B + j, ldb, C + i * ldc + j, ldc, add);
      }
      for (; j + 32 <= N; j += 32) {
        Tile<4, 2>(K, rows, a_row, a_col, B + j, ldb, C + i * ldc + j, ldc, add);
      }
      if (j < N) Tile<4, 1>(K, rows, a_row, a_col, B + j, ldb, C + i * ldc + j, ldc, add);
    }
  }
  static void AddRow(int64_t N, int64_t K, const float* A, int64_t a_col, const float* B,
                     int64_t ldb, float* C) {
    int64_t n = 0;
    for (; n + 64 <= N; n += 64) Tile<1, 4>(K, A, 0, a_col, B + n, ldb, C + n, 0, true);
    for (; n < N; n += 16) Tile<1, 1>(K, A, 0, a_col, B + n, ldb, C + n, 0, true);
  }
};

}  // namespace

void Avx512Wkv7(const Wkv7Forward<float>& p, int64_t begin, int64_t end) {
  Wkv7Chunk<Avx512ChunkOps> chunk(p, false);
  for (int64_t task = begin; task < end; ++task) chunk.Forward(task);
}

void Avx512Wkv7Grad(const Wkv7Backward<float>& q, int64_t begin, int64_t end) {
  Wkv7Chunk<Avx512ChunkOps> chunk(q.forward, true);
  for (int64_t task = begin; task < end; ++task) chunk.Backward(q, task);
}

}  // namespace skein::kernels::train
