// SIMD on compiler vector extensions, chosen once at load, without -march=native in the build.
//
// A kernel is an always-inlined template over the width of its vectors (and, where it pays, the
// size of its register tiles), with one thin entry for each CPU level:
//
//   INFOSLICE_TARGET_V4 void f_v4(...) { body<64>(...); }   x86-64-v4: 64-byte vectors
//   INFOSLICE_TARGET_V3 void f_v3(...) { body<32>(...); }   x86-64-v3: 32-byte vectors, FMA
//   void f_base(...) { body<16>(...); }                     the baseline, and other architectures
//
// and a switch on cpu_level(). GCC's target_clones would save the switch, but compiles one body for
// all levels, and vectors wider than the machine's end up in memory. On other architectures and
// compilers only the baseline exists (NEON on arm64), which is correct, only slower.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <string_view>

#define INFOSLICE_INLINE [[gnu::always_inline]] inline

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define INFOSLICE_MULTIVERSION 1
#define INFOSLICE_TARGET_V4 __attribute__((target("arch=x86-64-v4")))
#define INFOSLICE_TARGET_V3 __attribute__((target("arch=x86-64-v3")))
#else
#define INFOSLICE_MULTIVERSION 0
#define INFOSLICE_TARGET_V4
#define INFOSLICE_TARGET_V3
#endif
namespace infoslice {

enum class CpuLevel { baseline, v3, v4 };

// The level whose bodies run: the machine's, or a lower one that the environment variable
// INFOSLICE_CPU_LEVEL asks for (baseline, v3), so that every body can be tested on one machine.
// Always baseline where there is only one body.
inline CpuLevel cpu_level() {
#if INFOSLICE_MULTIVERSION
  static const CpuLevel level = [] {
    const char* wish = std::getenv("INFOSLICE_CPU_LEVEL");
    const std::string_view most = wish ? wish : "v4";
    if (most == "baseline" || !__builtin_cpu_supports("x86-64-v3")) return CpuLevel::baseline;
    if (most == "v3" || !__builtin_cpu_supports("x86-64-v4")) return CpuLevel::v3;
    return CpuLevel::v4;
  }();
  return level;
#else
  return CpuLevel::baseline;
#endif
}

// Vec<T, N>: N lanes of T in one register, with the usual operators lane by lane. N * sizeof(T)
// must be a width that the machine has (16, 32, 64 bytes): wider vectors are spilled to memory.
template <class T, int N>
struct VecOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class T, int N>
using Vec = typename VecOf<T, N>::type;

template <class V, class T>
INFOSLICE_INLINE V load(const T* from) {
  V value;
  __builtin_memcpy(&value, from, sizeof(V));
  return value;
}

template <class V, class T>
INFOSLICE_INLINE void store(T* to, const V& value) {
  __builtin_memcpy(to, &value, sizeof(V));
}

}  // namespace infoslice
