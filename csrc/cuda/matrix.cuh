// The warp's matrix instructions (compute capability 8.0): loads of 8 x 8 matrices from shared
// memory and products of 16 x 16 by 16 x 8. On the emulation they are those of
// emulation/matrix.h.
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

/// sums += left (16 x 16: the four 8 x 8 matrices at rows 0 and 8 of columns 0 - 7, then of columns
/// 8 - 15) times right (16 x 8, given as two transposed 8 x 8 matrices). A lane holds of the sums
/// (lane / 4, lane % 4 * 2), the one behind it, and the same two 8 rows below.
template <class T>
__device__ __forceinline__ void multiply_add(float (&sums)[4], const uint32_t (&left)[4],
                                             const uint32_t* right) {
#ifdef INFOSLICE_EMULATION
  emulation::multiply_add(INFOSLICE_HERE, sums, left, right,
                          [](uint16_t bits) { return widened(T{bits}); });
#else
  if constexpr (std::is_same_v<T, bfloat16>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
  }
#endif
}

}  // namespace infoslice::cuda
