// SIMD on compiler vector extensions, chosen once at load, without -march=native in the build.
//
// Two ways to use it, both over always-inlined templates that are written once:
//   INFOSLICE_CLONES void f(...) { body<...>(...); }   one body, cloned for x86-64-v4, v3 and the
//                                                      baseline; the loader binds the best.
//   INFOSLICE_TARGET_V4 / _V3 thin entries + cpu_level()  where the body takes other template
//                                                      parameters (register tiles) at each level.
// On other architectures and on compilers without target_clones everything compiles to the one
// baseline body (NEON on arm64), which is correct, only slower.
#pragma once

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
// The loader binds clones before a sanitizer's run time is ready.
#if INFOSLICE_MULTIVERSION && !defined(INFOSLICE_SANITIZE)
#define INFOSLICE_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define INFOSLICE_CLONES
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
