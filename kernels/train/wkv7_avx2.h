#pragma once
// What the chunked WKV-7 (wkv7_chunk.h) asks of AVX2. In an unnamed namespace so that a tier above
// can build on it with its own copies.

#include "kernels/train/simd_avx2.h"
#include "kernels/train/wkv7_chunk.h"

namespace skein::kernels::train {
namespace {

// Four rows by sixteen columns of C in registers.
inline void Tile4x16(int64_t K, const float* A, int64_t a_row, int64_t a_col, const float* B,
                     int64_t ldb, float* C, int64_t ldc, bool add) {
  __m256 c[4][2];
  for (int i = 0; i < 4; ++i) {
    c[i][0] = add ? _mm256_loadu_ps(C + i * ldc) : _mm256_setzero_ps();
    c[i][1] = add ? _mm256_loadu_ps(C + i * ldc + 8) : _mm256_setzero_ps();
  }
  for (int64_t k = 0; k < K; ++k) {
    const __m256 b0 = _mm256_loadu_ps(B + k * ldb), b1 = _mm256_loadu_ps(B + k * ldb + 8);
    const float* column = A + k * a_col;
    for (int i = 0; i < 4; ++i) {
      const __m256 f = _mm256_broadcast_ss(column + i * a_row);
      c[i][0] = _mm256_fmadd_ps(f, b0, c[i][0]);
      c[i][1] = _mm256_fmadd_ps(f, b1, c[i][1]);
    }
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(C + i * ldc, c[i][0]);
    _mm256_storeu_ps(C + i * ldc + 8, c[i][1]);
  }
}

// One row of kVectors vectors: C += A B.
template <int kVectors>
void RowTile(int64_t K, const float* A, int64_t a_col, const float* B, int64_t ldb, float* C) {
  __m256 c[kVectors];
  for (int i = 0; i < kVectors; ++i) c[i] = _mm256_loadu_ps(C + 8 * i);
  for (int64_t k = 0; k < K; ++k) {
    const __m256 f = _mm256_broadcast_ss(A + k * a_col);
    for (int i = 0; i < kVectors; ++i) {
      c[i] = _mm256_fmadd_ps(f, _mm256_loadu_ps(B + k * ldb + 8 * i), c[i]);
    }
  }
  for (int i = 0; i < kVectors; ++i) _mm256_storeu_ps(C + 8 * i, c[i]);
}

inline void Transpose8x8(const float* from, int64_t ld_from, float* to, int64_t ld_to) {
  __m256 r[8], s[8];
  for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(from + i * ld_from);
  for (int i = 0; i < 8; i += 2) {
    s[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    s[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(s[i], s[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(s[i], s[i + 2], 0xEE);
    r[i + 2] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0xEE);
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(to + i * ld_to, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    _mm256_storeu_ps(to + (i + 4) * ld_to, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
}

struct Avx2ChunkOps {
  using Real = float;
  static void Decay(int64_t n, const float* w_raw, float* sigma, float* w) {
    for (int64_t i = 0; i < n; i += 8) {
      const __m256 s = Sigmoid(_mm256_loadu_ps(w_raw + i));
      _mm256_storeu_ps(sigma + i, s);
      _mm256_storeu_ps(
          w + i, Exp(_mm256_mul_ps(_mm256_set1_ps(-Wkv7Chunk<Avx2ChunkOps>::kDecayScale), s)));
    }
  }
  static void Gemm(int64_t M, int64_t N, int64_t K, const float* A, int64_t a_row, int64_t a_col,
                   const float* B, int64_t ldb, float* C, int64_t ldc, bool add) {
    for (int64_t j = 0; j < N; j += 16) {
      for (int64_t i = 0; i < M; i += 4) {
        Tile4x16(K, A + i * a_row, a_row, a_col, B + j, ldb, C + i * ldc + j, ldc, add);
      }
    }
  }
  static void AddRow(int64_t N, int64_t K, const float* A, int64_t a_col, const float* B,
                     int64_t ldb, float* C) {
    int64_t n = 0;
    for (; n + 32 <= N; n += 32) RowTile<4>(K, A, a_col, B + n, ldb, C + n);
    if (n < N) RowTile<2>(K, A, a_col, B + n, ldb, C + n);
  }
  static void Copy(int64_t n, const float* from, float* to) {
    for (int64_t i = 0; i < n; i += 8) _mm256_storeu_ps(to + i, _mm256_loadu_ps(from + i));
  }
  static void Transpose(int64_t rows, int64_t columns, const float* from, int64_t ld_from,
                        float* to, int64_t ld_to) {
    for (int64_t i = 0; i < rows; i += 8) {
      for (int64_t j = 0; j < columns; j += 8) {
        Transpose8x8(from + i * ld_from + j, ld_from, to + j * ld_to + i, ld_to);
      }
    }
  }
};

}  // namespace
}  // namespace skein::kernels::train
