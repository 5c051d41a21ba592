// Hopper's own instructions (compute capability 9.0a): barriers in shared memory, copies of boxes of
// a tensor (TMA) and the warpgroup's matrix products. On the emulation they are those of
// emulation/async.h and emulation/warpgroup.h.
#pragma once

#include <cuda.h>

#include "cuda/scalars.cuh"

#ifdef INFOSLICE_EMULATION
#include "cuda/emulation/async.h"
#include "cuda/emulation/warpgroup.h"
#endif

namespace infoslice::cuda {

/// In the shared memory window, as these instructions take it.
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
#ifdef INFOSLICE_EMULATION
  return emulation::shared_address(pointer);
#else
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
#endif
}

// ---- barriers -----------------------------------------------------------------------------------

/// A phase ends with so many arrivals and all bytes that they announced. By one thread; then, before
/// the block's barrier, publish_barriers.
__device__ __forceinline__ void barrier_init(uint64_t* barrier, unsigned arrivals) {
#ifdef INFOSLICE_EMULATION
  emulation::barrier_init(INFOSLICE_HERE, barrier, arrivals);
#else
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
#endif
}

/// Makes initialised barriers known to the copies.
__device__ __forceinline__ void publish_barriers() {
#ifndef INFOSLICE_EMULATION
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
#ifdef INFOSLICE_EMULATION
  emulation::barrier_arrive(INFOSLICE_HERE, barrier);
#else
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
#endif
}

/// Arrives and announces bytes that copies will bring.
__device__ __forceinline__ void barrier_expect(uint64_t* barrier, unsigned bytes) {
#ifdef INFOSLICE_EMULATION
  emulation::barrier_expect(INFOSLICE_HERE, barrier, bytes);
#else
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
#endif
}

/// Waits for the end of the phase of this parity, counted from 0. Of a barrier in its first phase,
/// parity 1 has ended.
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, unsigned parity) {
#ifdef INFOSLICE_EMULATION
  emulation::barrier_wait(INFOSLICE_HERE, barrier, parity);
#else
  const uint32_t address = shared_address(barrier);
  uint32_t ended = 0;
  do {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(ended)
        : "r"(address), "r"(parity)
        : "memory");
  } while (ended == 0);
#endif
}

// ---- copies -------------------------------------------------------------------------------------

/// Copies a box of a tensor of five dimensions, zeros where it reaches beyond the tensor, and tells
/// the barrier its bytes. By one thread.
__device__ __forceinline__ void load_box(void* to, const CUtensorMap* map, uint64_t* barrier,
                                         const int (&origin)[5]) {
#ifdef INFOSLICE_EMULATION
  emulation::load_box(INFOSLICE_HERE, to, map, barrier, origin);
#else
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(origin[0]), "r"(origin[1]), "r"(origin[2]),
      "r"(origin[3]), "r"(origin[4])
      : "memory");
#endif
}

__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
#ifndef INFOSLICE_EMULATION
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
#else
  (void)map;
#endif
}

// ---- products -----------------------------------------------------------------------------------

/// The descriptor of an operand in shared memory in rows of 128 bytes, swizzled in atoms of eight
/// rows: the atoms' distances along M or N (leading, used where rows run along M or N) and along the
/// axis of the rows' numbers (stride).
__device__ __forceinline__ uint64_t describe(uint32_t address, unsigned leading, unsigned stride) {
  return static_cast<uint64_t>(address >> 4) | static_cast<uint64_t>(leading >> 4) << 16 |
         static_cast<uint64_t>(stride >> 4) << 32 | uint64_t{1} << 62;
}

/// Orders registers before the products that follow.
__device__ __forceinline__ void warpgroup_fence() {
#ifdef INFOSLICE_EMULATION
  emulation::warpgroup_fence();
#else
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void warpgroup_commit() {
#ifdef INFOSLICE_EMULATION
  emulation::warpgroup_commit();
#else
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

/// Waits for all products but those of the last kGroups commits.
template <int kGroups>
__device__ __forceinline__ void warpgroup_wait() {
#ifdef INFOSLICE_EMULATION
  emulation::warpgroup_wait(INFOSLICE_HERE, kGroups);
#else
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
#endif
}

/// After the wait: keeps the compiler from using the sums before it.
__device__ __forceinline__ void take(float (&sums)[64]) {
#ifdef INFOSLICE_EMULATION
  (void)sums;
#else
#pragma unroll
  for (int i = 0; i < 64; ++i) asm volatile("" : "+f"(sums[i])::"memory");
#endif
}

#define INFOSLICE_SUMS4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define INFOSLICE_SUMS16(i) \
  INFOSLICE_SUMS4(i), INFOSLICE_SUMS4(i + 4), INFOSLICE_SUMS4(i + 8), INFOSLICE_SUMS4(i + 12)
#define INFOSLICE_MULTIPLY(type)                                                              \
  asm volatile(                                                                               \
      "{\n"                                                                                   \
      ".reg .pred p;\n"                                                                       \
      "setp.ne.b32 p, %66, 0;\n"                                                              \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                            \
      " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "              \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "      \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "      \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "     \
      "%64, %65, p, 1, 1, %67, %67;\n"                                                        \
      "}"                                                                                     \
      : INFOSLICE_SUMS16(0), INFOSLICE_SUMS16(16), INFOSLICE_SUMS16(32), INFOSLICE_SUMS16(48) \
      : "l"(left), "l"(right), "r"(static_cast<int>(add)), "n"(kTransposed ? 1 : 0))

/// d = left (64 x 16) times right (16 x 128), plus d if `add`. Transposed: the operands' rows of 128
/// bytes run along M and N, not along K. Of thread t of the warpgroup, d[i] is
/// (16 * (t / 32) + t % 32 / 4 + i / 2 % 2 * 8, i / 4 * 8 + t % 4 * 2 + i % 2).
template <class T, bool kTransposed>
__device__ __forceinline__ void multiply_64x128(float (&d)[64], uint64_t left, uint64_t right,
                                                bool add) {
#ifdef INFOSLICE_EMULATION
  emulation::warpgroup_multiply(INFOSLICE_HERE, d, left, right, add, kTransposed, kTransposed,
                                [](uint16_t bits) { return widened(T{bits}); });
#else
  if constexpr (std::is_same_v<T, bfloat16>)
    INFOSLICE_MULTIPLY("bf16");
  else
    INFOSLICE_MULTIPLY("f16");
#endif
}
#undef INFOSLICE_MULTIPLY
#undef INFOSLICE_SUMS16
#undef INFOSLICE_SUMS4

}  // namespace infoslice::cuda
