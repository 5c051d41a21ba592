// Minimal spanning trees of points whose squared distances may have a part in common.
//
//   D(i, j) = base_ij + |x_i - x_j|^2,      the tree: that of the n - 1 edges with the least sum of D.
// The same edges have the least sum of distances sqrt(D), or of any increasing function of D. With
// `base` many trees share what is the same in all of them: the squared distances in other variables.
//
// points           [batch, n, d]      row-major, contiguous; n >= 1, d >= 0
// base             [n, n]             row-major, contiguous, symmetric; null: zero. Its diagonal does
//                                     not matter, but is finite too. Entries may be negative
//                                     (differences of distances).
// edges            [batch, n - 1, 2]  in the order found: a vertex of the tree, and the one it gains
// squared_lengths  [batch, n - 1]     D of each edge
// info             [batch]            0, or 1: some D is NaN or infinite. Then all edges of this tree
//                                     are -1 and the lengths NaN.
//
// Prim's algorithm from vertex 0 on a complete graph: n^2 (d + 1) additions, D is never stored. It
// gains the vertex nearest to the tree, of several the one of the lowest index, by its edge to the
// vertex that came first into the tree: where all D differ there is only one tree, and where they
// do not, this one.
//
// D is computed in T, as a sum of squares of differences: relative error (d + 2) eps, of base its
// own, and no cancellation for points far from the origin. CPU: a thread to a tree, memory of a
// thread n (d + 2) elements. CUDA: a block to a tree.
// Source: Prim 1957, Shortest connection networks, Bell System Technical Journal 36.
#pragma once

#include <cstddef>
#include <cstdint>

namespace infoslice {

namespace cpu {

template <class T>  // float, double
void spanning_tree(const T* points, const T* base, int64_t batch, int64_t n, int64_t d,
                   int64_t* edges, T* squared_lengths, int32_t* info, int threads);

}  // namespace cpu

namespace cuda {

// All pointers are device memory of the current device, `stream` is a cudaStream_t of it; work is
// only enqueued. Returns a cudaError_t (0 = success); does nothing where batch is 0.

// Bytes of device scratch memory: two numbers of 8 bytes a vertex, for as many trees as the grid
// holds at once.
size_t spanning_tree_workspace(int64_t batch, int64_t n);

template <class T>
int spanning_tree(const T* points, const T* base, int64_t batch, int64_t n, int64_t d,
                  int64_t* edges, T* squared_lengths, int32_t* info, void* workspace, void* stream);

}  // namespace cuda
}  // namespace infoslice
