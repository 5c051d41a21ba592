// Row-major matrices transposed by blocks of whole registers.
#pragma once

#include <cstdint>

namespace infoslice::cpu {

/// destination[j][i] = source[i][j] for a rows x columns source.
void transpose(const double* source, int64_t rows, int64_t columns, int64_t source_stride,
               double* destination, int64_t destination_stride);

/// Writes the lower triangle of a row-major d x d matrix as the upper triangle of `upper`, whose
/// strict lower triangle is undefined afterwards. Values above the diagonal of `lower` do not
/// matter.
void load_upper(const float* lower, int64_t d, float* upper, int64_t stride);
void load_upper(const float* lower, int64_t d, double* upper, int64_t stride);
void load_upper(const double* lower, int64_t d, double* upper, int64_t stride);

/// Writes the transposed upper triangle as a row-major d x d matrix with zeros above its diagonal.
void store_lower(const float* upper, int64_t d, int64_t stride, float* lower);
void store_lower(const double* upper, int64_t d, int64_t stride, double* lower);

}  // namespace infoslice::cpu
