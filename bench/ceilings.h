#pragma once
// What this machine can do at best, measured in the same run as the figures that are compared with
// it.

#include <immintrin.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/device.h"

namespace skein::bench {

// Set for runs of one thread on a machine that others use too: time is then what this thread ran,
// not what passed.
inline bool use_thread_time = false;

inline double Now() {
  if (use_thread_time) {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Timing {
  double median = 0, best = 0;  // seconds
};

// Calls `body()` until `budget` seconds are over, at least 5 times, after one warm-up.
template <typename Body>
Timing Measure(double budget, const Body& body) {
  body();
  std::vector<double> times;
  const double start = Now();
  while (times.size() < 5 || (Now() - start < budget && times.size() < 20000)) {
    const double t = Now();
    body();
    times.push_back(Now() - t);
  }
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times[0]};
}

// Keeps a value that a loop computed.
inline std::atomic<uint64_t> sink{0};

inline uint64_t ReadAll(const char* p, int64_t bytes) {
  typedef uint64_t V2 __attribute__((vector_size(16)));
  V2 sums[8] = {};
  for (int64_t i = 0; i + 128 <= bytes; i += 128) {
    for (int j = 0; j < 8; ++j) {
      V2 v;
      std::memcpy(&v, p + i + 16 * j, 16);
      sums[j] += v;
    }
  }
  uint64_t sum = 0;
  for (const V2& v : sums) sum += v[0] + v[1];
  return sum;
}

// Bytes per second at which all threads of the stream together read from `bytes` of memory. A piece
// takes about half a millisecond, so that the best of them was not interrupted by other programs.
inline double ReadBandwidth(kernels::Stream& stream, char* memory, int64_t bytes) {
  constexpr int64_t kPage = 4096;
  std::memset(memory, 1, bytes);
  kernels::Executor& executor = stream.executor();
  const int64_t pages = std::min(bytes, int64_t{16} << 20) / kPage;  // of one piece
  const int64_t repeat = (int64_t{16} << 20) / (pages * kPage);
  int64_t piece = 0;
  const Timing t = Measure(0.5, [&] {
    const char* start = memory + (piece++ * pages * kPage) % bytes;
    executor.ParallelFor(pages, (pages + executor.num_threads() - 1) / executor.num_threads(),
                         [&](int64_t begin, int64_t end) {
                           uint64_t sum = 0;
                           for (int64_t r = 0; r < repeat; ++r)
                             sum += ReadAll(start + begin * kPage, (end - begin) * kPage);
                           sink += sum;
                         });
  });
  return static_cast<double>(pages * kPage) * repeat / t.best;
}

// The same of the device's memory, which is what weights lie in.
inline double ReadBandwidth(kernels::Device& device, kernels::Stream& stream, int64_t bytes) {
  const kernels::Buffer memory(device, bytes);
  return ReadBandwidth(stream, memory.as<char>(), bytes);
}

// One thread's chains of fused multiply-adds in registers; returns the operations done.
__attribute__((target("avx2,fma"))) inline double FmaChains(int64_t rounds) {
  __m256 acc[12];
  for (int i = 0; i < 12; ++i) acc[i] = _mm256_set1_ps(static_cast<float>(i));
  __m256 x = _mm256_set1_ps(0.999f), y = _mm256_set1_ps(1e-3f);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) acc[i] = _mm256_fmadd_ps(acc[i], x, y);
    asm volatile("" : "+x"(x), "+x"(y));
  }
  float out[8];
  for (int i = 1; i < 12; ++i) acc[0] = _mm256_add_ps(acc[0], acc[i]);
  _mm256_storeu_ps(out, acc[0]);
  sink += static_cast<uint64_t>(out[0]);
  return static_cast<double>(rounds) * 12 * 16;
}

// The same of dot products of bf16 pairs.
__attribute__((target("avx512f,avx512bf16"))) inline double DotChains(int64_t rounds) {
  __m512 acc[12];
  for (int i = 0; i < 12; ++i) acc[i] = _mm512_set1_ps(static_cast<float>(i));
  __m512 x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(1e-3f);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) {
      acc[i] =
          _mm512_dpbf16_ps(acc[i], reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(y));
    }
    asm volatile("" : "+v"(x), "+v"(y));
  }
  float out[16];
  for (int i = 1; i < 12; ++i) acc[0] = _mm512_add_ps(acc[0], acc[i]);
  _mm512_storeu_ps(out, acc[0]);
  sink += static_cast<uint64_t>(out[0]);
  return static_cast<double>(rounds) * 12 * 64;
}

// Operations per second of all threads in registers: fp32 multiply-adds, or (`dots`) dot products
// of bf16 pairs; 0 where the machine has no such instruction.
inline double PeakFlops(kernels::Stream& stream, bool dots = false) {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
  if (dots && !__builtin_cpu_supports("avx512bf16")) return 0;
  kernels::Executor& executor = stream.executor();
  const int n = executor.num_threads();
  constexpr int64_t kRounds = 100000;
  const auto chains = dots ? DotChains : FmaChains;
  const double done = chains(kRounds) * n;
  const Timing t = Measure(0.3, [&] {
    executor.ParallelFor(n, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) chains(kRounds);
    });
  });
  return done / t.best;
}

}  // namespace skein::bench
