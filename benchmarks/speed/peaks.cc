// What the machine can do at most: int8 dot products and reading memory. One process, asked line by line:
//
//   int8 THREADS MILLISECONDS    ->  operations a second (a multiplication and an addition are two), or 0
//   read THREADS MILLISECONDS    ->  bytes a second
//   kind                         ->  avx512_vnni, avx_vnni or none
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

using Clock = std::chrono::steady_clock;
constexpr size_t kBufferBytes = size_t{512} << 20;  // more than any last-level cache share

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Sixteen chains of dot products: the latency of one (4-5 cycles) times two units is ten. Their start values
// differ and pass through an empty asm: a compiler that sees equal chains keeps one of them.
#define CHAINS(DO) \
  DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11) DO(12) DO(13) DO(14) DO(15)
constexpr int64_t kPasses = 4096;

#if defined(__x86_64__)
#define START512(i)                   \
  __m512i c##i = _mm512_set1_epi32(i); \
  asm volatile("" : "+v"(c##i));
#define DOT512(i) asm volatile("vpdpbusd %2, %1, %0" : "+v"(c##i) : "v"(a), "v"(b));
#define KEEP(i) asm volatile("" : : "v"(c##i));
__attribute__((target("avx512f"))) int64_t dot_avx512() {
  __m512i a = _mm512_set1_epi32(0x01020304), b = _mm512_set1_epi32(0x01010101);
  CHAINS(START512)
  for (int64_t pass = 0; pass < kPasses; ++pass) {
    CHAINS(DOT512)
  }
  CHAINS(KEEP)
  return kPasses * 16 * 64 * 2;
}

// Sixteen vector registers in all: twelve chains.
#define CHAINS12(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
#define START256(i)                   \
  __m256i c##i = _mm256_set1_epi32(i); \
  asm volatile("" : "+x"(c##i));
#define DOT256(i) asm volatile("%{vex%} vpdpbusd %2, %1, %0" : "+x"(c##i) : "x"(a), "x"(b));
__attribute__((target("avx2"))) int64_t dot_avx() {
  __m256i a = _mm256_set1_epi32(0x01020304), b = _mm256_set1_epi32(0x01010101);
  CHAINS12(START256)
  for (int64_t pass = 0; pass < kPasses; ++pass) {
    CHAINS12(DOT256)
  }
  CHAINS12(KEEP)
  return kPasses * 12 * 32 * 2;
}

__attribute__((target("avx2"))) int64_t read_avx(const char* data, size_t bytes) {
  __m256i sums[4] = {};
  for (size_t i = 0; i < bytes; i += 128) {
    for (int j = 0; j < 4; ++j) {
      auto* next = reinterpret_cast<const __m256i*>(data + i + 32 * j);
      sums[j] = _mm256_add_epi64(sums[j], _mm256_load_si256(next));
    }
  }
  __m256i all = _mm256_add_epi64(_mm256_add_epi64(sums[0], sums[1]), _mm256_add_epi64(sums[2], sums[3]));
  return _mm256_extract_epi64(all, 0);
}
#endif

int64_t read_plain(const char* data, size_t bytes) {
  uint64_t sums[8] = {};
  for (size_t i = 0; i < bytes; i += 64) {
    for (int j = 0; j < 8; ++j) {
      uint64_t value;
      std::memcpy(&value, data + i + 8 * j, 8);
      sums[j] += value;
    }
  }
  return static_cast<int64_t>(sums[0] + sums[1] + sums[2] + sums[3] + sums[4] + sums[5] + sums[6] + sums[7]);
}

std::string kind() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512vnni")) return "avx512_vnni";
#if defined(__clang__) || __GNUC__ >= 12
  if (__builtin_cpu_supports("avxvnni")) return "avx_vnni";
#endif
#endif
  return "none";
}

// Runs `work(thread)`, which returns how much it did, again and again on all threads; returns the rate of all.
template <typename Work>
double rate(int threads, double seconds, Work work) {
  std::atomic<int> ready{0};
  std::vector<double> rates(threads);
  auto run = [&](int thread) {
    ++ready;
    while (ready < threads) {
    }
    auto start = Clock::now();
    double done = 0;
    do done += static_cast<double>(work(thread));
    while (seconds_since(start) < seconds);
    rates[thread] = done / seconds_since(start);
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(run, thread);
  run(0);
  for (auto& other : others) other.join();
  double all = 0;
  for (double one : rates) all += one;
  return all;
}

double int8_rate(int threads, double seconds) {
#if defined(__x86_64__)
  if (kind() == "avx512_vnni") return rate(threads, seconds, [](int) { return dot_avx512(); });
  if (kind() == "avx_vnni") return rate(threads, seconds, [](int) { return dot_avx(); });
#endif
  return 0;
}

double read_rate(int threads, double seconds) {
  static char* buffer = [] {
    char* memory = static_cast<char*>(std::aligned_alloc(4096, kBufferBytes));
    if (memory) std::memset(memory, 1, kBufferBytes);
    return memory;
  }();
  if (!buffer) return 0;
  constexpr size_t kPiece = size_t{4} << 20;
  size_t share = kBufferBytes / threads / kPiece * kPiece;
  std::vector<size_t> offsets(threads * 16);  // a cache line apart
  static std::atomic<int64_t> sink;
  return rate(threads, seconds, [&](int thread) {
    size_t& offset = offsets[thread * 16];
    const char* data = buffer + thread * share + offset;
#if defined(__x86_64__)
    sink += __builtin_cpu_supports("avx2") ? read_avx(data, kPiece) : read_plain(data, kPiece);
#else
    sink += read_plain(data, kPiece);
#endif
    offset = (offset + kPiece) % share;
    return kPiece;
  });
}

}  // namespace

int main() {
  std::string what;
  while (std::cin >> what) {
    if (what == "kind") {
      std::cout << kind() << std::endl;
      continue;
    }
    int threads = 1;
    double milliseconds = 0;
    std::cin >> threads >> milliseconds;
    double result = what == "int8" ? int8_rate(threads, milliseconds / 1e3) : read_rate(threads, milliseconds / 1e3);
    std::cout << result << std::endl;
  }
}
