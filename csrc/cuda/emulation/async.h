// What Hopper (compute capability 9.0) does asynchronously, for the emulation, after the PTX ISA:
// barriers in shared memory that count arrivals and bytes, and copies of boxes of a tensor.
//
// A copy takes effect at some time after its issue: until then its destination is poison (0xff bytes)
// and its bytes are missing from the barrier. Wrong alignment, sizes or phases make the launch fail.
#pragma once

#include "cuda/emulation/cuda.h"
#include "cuda_runtime.h"

namespace infoslice::emulation {

/// Where in the shared memory window. The dynamic part begins at no more than what is guaranteed,
/// a multiple of 16.
uint32_t shared_address(const void* pointer);

void barrier_init(Place place, uint64_t* barrier, uint32_t arrivals);
void barrier_arrive(Place place, uint64_t* barrier);
void barrier_expect(Place place, uint64_t* barrier, uint32_t bytes);  // arrive.expect_tx
void barrier_wait(Place place, uint64_t* barrier, uint32_t parity);   // try_wait.parity, until true

/// cp.async.bulk.tensor, tile mode, of a map of five dimensions.
void load_box(Place place, void* to, const CUtensorMap* map, uint64_t* barrier,
              const int (&origin)[5]);

}  // namespace infoslice::emulation
