// What feeds and what are the tensor cores (compute capability 8.0): copies to shared memory that
// nobody waits for, loads of 8 x 8 matrices from there, and products. On the emulation they are those
// of emulation/matrix.h.
#pragma once

#include "cuda/scalars.cuh"

namespace infoslice::cuda {

/// Loads four matrices of 16-bit elements, or their transposes. Lane 8 m + r gives the address, a
/// multiple of 16 bytes in shared memory, of row r of matrix m; a lane receives in to[m] the
/// elements (lane / 4, lane % 4 * 2) and the one behind it.
template <bool kTransposed>
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const void* row) {
#ifdef INFOSLICE_EMULATION
  emulation::load_matrices(INFOSLICE_HERE, to, row, kTransposed);
#else
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  }
#endif
}

/// Begins to copy 16 bytes, both addresses multiples of 16. The thread has them from wait_copies on,
/// others after a barrier behind that.
__device__ __forceinline__ void copy_vector(void* to_shared, const void* from_global) {
#ifdef INFOSLICE_EMULATION
  emulation::copy_async(to_shared, from_global, 16);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
               :
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(to_shared))), "l"(from_global)
               : "memory");
#endif
}
/// The copies begun since the last call are a group, even if there are none.
__device__ __forceinline__ void commit_copies() {
#ifdef INFOSLICE_EMULATION
  emulation::commit_copies();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
/// Waits for all groups but the last kLeft.
template <int kLeft>
__device__ __forceinline__ void wait_copies() {
#ifdef INFOSLICE_EMULATION
  emulation::wait_copies(kLeft);
#else
  asm volatile("cp.async.wait_group %0;" : : "n"(kLeft) : "memory");
#endif
}

/// sums += left (16 x 8 words: the four 8 x 4 parts at rows 0 and 8 of words 0 - 3, then of words
/// 4 - 7) times right (8 words x 8, given as two transposed parts). A word is two 16-bit elements or
/// a tf32: a float of which the last 13 bits are zero. A lane holds of a part (lane / 4, lane % 4) and
/// of the sums (lane / 4, lane % 4 * 2), the one behind it, and the same two 8 rows below.
template <class T>
__device__ __forceinline__ void multiply_add(float (&sums)[4], const uint32_t (&left)[4],
                                             const uint32_t* right) {
#ifdef INFOSLICE_EMULATION
  if constexpr (sizeof(T) == 4) {
    emulation::multiply_add<1, 4>(INFOSLICE_HERE, sums, left, right, emulation::tf32);
  } else {
    emulation::multiply_add<2, 8>(INFOSLICE_HERE, sums, left, right,
                                  [](uint32_t bits) { return widened(T{uint16_t(bits)}); });
  }
#else
#define INFOSLICE_MULTIPLY_ADD(shape_and_types)                          \
  asm("mma.sync.aligned." shape_and_types                                \
      " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])       \
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]))
  if constexpr (std::is_same_v<T, bfloat16>)
    INFOSLICE_MULTIPLY_ADD("m16n8k16.row.col.f32.bf16.bf16.f32");
  else if constexpr (std::is_same_v<T, float16>)
    INFOSLICE_MULTIPLY_ADD("m16n8k16.row.col.f32.f16.f16.f32");
  else
    INFOSLICE_MULTIPLY_ADD("m16n8k8.row.col.f32.tf32.tf32.f32");
#undef INFOSLICE_MULTIPLY_ADD
#endif
}

/// sums += left (8 x 4) times right (4 x 8, given transposed), in double. A lane holds of both
/// (lane / 4, lane % 4) and of the sums (lane / 4, lane % 4 * 2) and the one behind it.
__device__ __forceinline__ void multiply_add(double (&sums)[2], double left, double right) {
#ifdef INFOSLICE_EMULATION
  emulation::multiply_add(INFOSLICE_HERE, sums, left, right);
#else
  asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
      : "+d"(sums[0]), "+d"(sums[1])
      : "d"(left), "d"(right));
#endif
}

}  // namespace infoslice::cuda
