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
#include <string>
#include <vector>

#include "kernels/device.h"
#include "kernels/ops.h"

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

// Two ways to read memory in order, with any machine's loads and with the widest, fetched ahead.
// Both return a sum of it, so that it is read.

inline uint64_t ReadPlain(const char* p, int64_t bytes) {
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

__attribute__((target("avx512f"))) inline uint64_t ReadWide(const char* p, int64_t bytes) {
  constexpr int64_t kAhead = 8192;  // of 0 to 16 KiB the fastest on Sapphire Rapids
  __m512i sums[4] = {};
  for (int64_t i = 0; i + 256 <= bytes; i += 256) {
    for (int j = 0; j < 4; ++j) {
      _mm_prefetch(p + i + 64 * j + kAhead, _MM_HINT_T0);
      sums[j] = _mm512_add_epi64(sums[j], _mm512_loadu_si512(p + i + 64 * j));
    }
  }
  alignas(64) uint64_t lanes[4][8];
  for (int j = 0; j < 4; ++j) _mm512_store_si512(lanes[j], sums[j]);
  uint64_t sum = 0;
  for (const auto& some : lanes) {
    for (const uint64_t lane : some) sum += lane;
  }
  return sum;
}

// Bytes per second at which all threads of the stream together read `bytes` of memory in order,
// again and again: the best of many passes, each of which reads at least 16 MiB. Caches make it
// depend on `bytes`: give about what the compared work reads.
inline double ReadBandwidth(kernels::Stream& stream, char* memory, int64_t bytes,
                            uint64_t (*read)(const char*, int64_t)) {
  constexpr int64_t kPage = 4096;
  kernels::Executor& executor = stream.executor();
  const int64_t pages = bytes / kPage, repeat = ((int64_t{16} << 20) + bytes - 1) / bytes;
  const Timing t = Measure(0.5, [&] {
    executor.ParallelFor(pages, (pages + executor.num_threads() - 1) / executor.num_threads(),
                         [&](int64_t begin, int64_t end) {
                           uint64_t sum = 0;
                           for (int64_t r = 0; r < repeat; ++r)
                             sum += read(memory + begin * kPage, (end - begin) * kPage);
                           sink += sum;
                         });
  });
  return static_cast<double>(pages * kPage) * repeat / t.best;
}

// By whichever loop is faster.
inline double ReadBandwidth(kernels::Stream& stream, char* memory, int64_t bytes) {
  std::memset(memory, 1, bytes);
  const double plain = ReadBandwidth(stream, memory, bytes, ReadPlain);
  if (!__builtin_cpu_supports("avx512f")) return plain;
  return std::max(plain, ReadBandwidth(stream, memory, bytes, ReadWide));
}

// The same of the device's memory, which is what weights lie in.
inline double ReadBandwidth(kernels::Device& device, kernels::Stream& stream, int64_t bytes) {
  const kernels::Buffer memory(device, bytes);
  return ReadBandwidth(stream, memory.as<char>(), bytes);
}

// One thread's work in registers at the peak of a kind of instruction; each returns the operations
// done.

__attribute__((target("avx2,fma"))) inline double Fma256(int64_t rounds) {
  __m256 acc[12];
  for (int i = 0; i < 12; ++i) acc[i] = _mm256_set1_ps(static_cast<float>(i));
  __m256 x = _mm256_set1_ps(0.999f), y = _mm256_set1_ps(1e-3f);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) acc[i] = _mm256_fmadd_ps(acc[i], x, y);
    asm volatile("" : "+x"(x), "+x"(y));
  }
  for (int i = 1; i < 12; ++i) acc[0] = _mm256_add_ps(acc[0], acc[i]);
  float out[8];
  _mm256_storeu_ps(out, acc[0]);
  sink += static_cast<uint64_t>(out[0]);
  return static_cast<double>(rounds) * 12 * 16;
}

__attribute__((target("avx512f"))) inline double Fma512(int64_t rounds) {
  __m512 acc[12];
  for (int i = 0; i < 12; ++i) acc[i] = _mm512_set1_ps(static_cast<float>(i));
  __m512 x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(1e-3f);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) acc[i] = _mm512_fmadd_ps(acc[i], x, y);
    asm volatile("" : "+v"(x), "+v"(y));
  }
  for (int i = 1; i < 12; ++i) acc[0] = _mm512_add_ps(acc[0], acc[i]);
  float out[16];
  _mm512_storeu_ps(out, acc[0]);
  sink += static_cast<uint64_t>(out[0]);
  return static_cast<double>(rounds) * 12 * 32;
}

// Products of pairs of 16-bit numbers, which one more instruction adds.
__attribute__((target("avx2"))) inline double WordPairs256(int64_t rounds) {
  __m256i acc[12];
  for (int i = 0; i < 12; ++i) acc[i] = _mm256_set1_epi32(i);
  __m256i x = _mm256_set1_epi32(0x00010002);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) {
      asm volatile("" : "+x"(x));  // or one product would do for all
      acc[i] = _mm256_add_epi32(acc[i], _mm256_madd_epi16(x, x));
    }
  }
  for (int i = 1; i < 12; ++i) acc[0] = _mm256_add_epi32(acc[0], acc[i]);
  alignas(32) int32_t out[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(out), acc[0]);
  sink += static_cast<uint64_t>(out[0]);
  return static_cast<double>(rounds) * 12 * 32;
}

// Dot products of pairs of bf16.
__attribute__((target("avx512f,avx512bf16"))) inline double Dots(int64_t rounds) {
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
  for (int i = 1; i < 12; ++i) acc[0] = _mm512_add_ps(acc[0], acc[i]);
  float out[16];
  _mm512_storeu_ps(out, acc[0]);
  sink += static_cast<uint64_t>(out[0]);
  return static_cast<double>(rounds) * 12 * 64;
}

// Dot products of fours of int8.
__attribute__((target("avx512f,avx512vnni"))) inline double Dots8(int64_t rounds) {
  __m512i acc[12];
  for (int i = 0; i < 12; ++i) acc[i] = _mm512_set1_epi32(i);
  __m512i x = _mm512_set1_epi32(0x01020304), y = _mm512_set1_epi32(0x01ff01ff);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) acc[i] = _mm512_dpbusd_epi32(acc[i], x, y);
    asm volatile("" : "+v"(x), "+v"(y));
  }
  for (int i = 1; i < 12; ++i) acc[0] = _mm512_add_epi32(acc[0], acc[i]);
  alignas(64) int32_t out[16];
  _mm512_store_si512(out, acc[0]);
  sink += static_cast<uint64_t>(out[0]);
  return static_cast<double>(rounds) * 12 * 128;
}

// Eight tiles of 16 rows of 64 bytes. Only where the tier "amx" is, which has asked the system for
// tiles.
__attribute__((target("amx-tile"))) inline void ConfigureTiles() {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes_of_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  __asm__ volatile("" : : "m"(config));  // the compiler does not see that it is read
  _tile_loadconfig(&config);
}

// Products of bf16 tiles.
__attribute__((target("amx-tile,amx-bf16"))) inline double TileProducts(int64_t rounds) {
  alignas(64) float values[256] = {};
  __asm__ volatile("" : : "m"(values));  // the compiler does not see what a tile reads
  ConfigureTiles();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, values, 64);
  _tile_loadd(5, values, 64);
  _tile_loadd(6, values, 64);
  _tile_loadd(7, values, 64);
  for (int64_t r = 0; r < rounds; ++r) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, values, 64);
  __asm__ volatile("" : "+m"(values));
  _tile_release();
  sink += static_cast<uint64_t>(values[0]);
  return static_cast<double>(rounds) * 4 * 2 * 16 * 16 * 32;
}

// Operations per second of all threads in registers, with the instruction that `tier` (of
// kernels/cpu/tiers.cc) multiplies such weights with. "": fp32 with the widest of this machine.
// int8 on "amx" takes as long as bf16: its tiles have twice the k, and each row of x is two of
// them; with x in 8 bits it is one. VNNI has pairs of 16 bits for int8 as fast as fours of 8 bits.
// AVX-512 multiplies and adds pairs of 16 bits in two instructions, as fast as twice as many floats
// in one each.
inline double PeakFlops(kernels::Stream& stream, const std::string& tier = "",
                        kernels::DType weights = kernels::DType::kF32) {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
  const bool wide =
      tier.empty() ? __builtin_cpu_supports("avx512f") : tier != "plain" && tier != "avx2";
  double (*work)(int64_t) = wide ? Fma512 : Fma256;
  if (weights != kernels::DType::kF32 && tier == "avx512bf16") work = Dots;
  if (kernels::IsInt8(weights) && tier == "avx512bf16") work = Dots8;
  if (kernels::IsInt8(weights) && tier == "avx2") work = WordPairs256;
  if (weights != kernels::DType::kF32 && tier == "amx") work = TileProducts;
  double per_product = 1;
  if (weights == kernels::DType::kI8A8 && tier == "amx") per_product = 2;
  if (weights == kernels::DType::kI8 && tier == "avx512bf16") per_product = 0.5;
  kernels::Executor& executor = stream.executor();
  const int n = executor.num_threads();
  constexpr int64_t kRounds = 50000;
  const double done = work(kRounds) * n * per_product;
  const Timing t = Measure(0.3, [&] {
    executor.ParallelFor(n, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) work(kRounds);
    });
  });
  return done / t.best;
}

}  // namespace skein::bench
