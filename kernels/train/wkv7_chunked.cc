// The chunked WKV-7 with plain loops, in float and double.

#include <algorithm>
#include <cmath>

#include "kernels/train/plain.h"
#include "kernels/train/wkv7_chunk.h"

namespace skein::kernels::train {
namespace {

template <class T>
struct PlainChunkOps {
  using Real = T;
  static void Decay(int64_t n, const Real* w_raw, Real* sigma, Real* w) {
    for (int64_t i = 0; i < n; ++i) {
      sigma[i] = 1 / (1 + std::exp(-w_raw[i]));
      w[i] = std::exp(-Wkv7Chunk<PlainChunkOps>::kDecayScale * sigma[i]);
    }
  }
  static void Gemm(int64_t M, int64_t N, int64_t K, const Real* A, int64_t a_row, int64_t a_col,
                   const Real* B, int64_t ldb, Real* C, int64_t ldc, bool add) {
    for (int64_t i = 0; i < M; ++i) {
      Real* row = C + i * ldc;
      for (int64_t j = 0; j < N && !add; ++j) row[j] = 0;
      for (int64_t k = 0; k < K; ++k) {
        const Real f = A[i * a_row + k * a_col];
        for (int64_t j = 0; j < N; ++j) row[j] += f * B[k * ldb + j];
      }
    }
  }
  static void AddRow(int64_t N, int64_t K, const Real* A, int64_t a_col, const Real* B, int64_t ldb,
                     Real* C) {
    Gemm(1, N, K, A, 0, a_col, B, ldb, C, N, true);
  }
  static void Copy(int64_t n, const Real* from, Real* to) { std::copy_n(from, n, to); }
  static void Transpose(int64_t rows, int64_t columns, const Real* from, int64_t ld_from, Real* to,
                        int64_t ld_to) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) to[j * ld_to + i] = from[i * ld_from + j];
    }
  }
};

}  // namespace

template <class Real>
void ChunkedWkv7(const Wkv7Forward<Real>& p, int64_t begin, int64_t end) {
  Wkv7Chunk<PlainChunkOps<Real>> chunk(p, false);
  for (int64_t task = begin; task < end; ++task) chunk.Forward(task);
}

template <class Real>
void ChunkedWkv7Grad(const Wkv7Backward<Real>& q, int64_t begin, int64_t end) {
  Wkv7Chunk<PlainChunkOps<Real>> chunk(q.forward, true);
  for (int64_t task = begin; task < end; ++task) chunk.Backward(q, task);
}

template void ChunkedWkv7(const Wkv7Forward<float>&, int64_t, int64_t);
template void ChunkedWkv7(const Wkv7Forward<double>&, int64_t, int64_t);
template void ChunkedWkv7Grad(const Wkv7Backward<float>&, int64_t, int64_t);
template void ChunkedWkv7Grad(const Wkv7Backward<double>&, int64_t, int64_t);

}  // namespace skein::kernels::train
