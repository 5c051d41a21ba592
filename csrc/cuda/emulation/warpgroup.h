// The warpgroup's asynchronous matrix product (wgmma, compute capability 9.0) for the emulation,
// after the PTX ISA: 64 x 16 by 16 x 128, both operands in shared memory behind descriptors.
//
// The sums are poison from the issue to the wait. The operands are read at both times and must be
// the same, as the device may read them at any time between.
#pragma once

#include "cuda_runtime.h"

namespace infoslice::emulation {

void warpgroup_fence();
void warpgroup_commit();
void warpgroup_wait(Place place, int groups);

/// The transposed (imm-trans) operands are M- or N-major.
void warpgroup_multiply(Place place, float (&sums)[64], uint64_t left, uint64_t right, bool add,
                        bool left_transposed, bool right_transposed, float (*widen)(uint16_t));

}  // namespace infoslice::emulation
