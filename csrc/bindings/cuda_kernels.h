// The table of CUDA bodies that module _cuda hands to module _core when the first CUDA tensor
// comes. A function pointer per body keeps _core free of CUDA objects; decltype keeps the
// signatures those of csrc/<op>.h.
#pragma once

#include <tuple>
#include <type_traits>

#include "cholesky.h"
#include "common/numeric.h"
#include "covariance.h"
#include "gaussian_mi.h"
#include "greedy.h"
#include "precision.h"
#include "slice_channels.h"
#include "spanning_tree.h"

namespace infoslice {

template <class T>
struct CudaKernelsOf {  // bodies for elements of type T
  decltype(&cuda::cholesky<T>) cholesky;
  decltype(&cuda::logdet_workspace<T>) logdet_workspace;
  decltype(&cuda::logdet<T>) logdet;
  decltype(&cuda::submatrix_logdet<T>) submatrix_logdet;
  decltype(&cuda::precision_blocks<T>) precision_blocks;
  decltype(&cuda::forward_selection<T>) forward_selection;
  decltype(&cuda::backward_elimination<T>) backward_elimination;
  decltype(&cuda::obs_elimination<T>) obs_elimination;
  decltype(&cuda::spanning_tree<T>) spanning_tree;
};

template <class T>
struct CovarianceOf {  // of inputs of type T
  decltype(&cuda::covariance_workspace<T>) workspace;
  decltype(&cuda::covariance<T, float>) to_float32;
  decltype(&cuda::covariance<T, double>) to_float64;
  decltype(&cuda::patch_covariance_workspace<T>) patch_workspace;
  decltype(&cuda::patch_covariance<T, float>) patches_to_float32;
  decltype(&cuda::patch_covariance<T, double>) patches_to_float64;
};

template <class T>
struct InformationOf {  // between variables of covariances of type T
  decltype(&cuda::marginal_mi<T>) marginal_mi;
  decltype(&cuda::conditional_mi<T>) conditional_mi;
  decltype(&cuda::pairwise_mi<T>) pairwise_mi;
};

struct SliceChannels {
  decltype(&cuda::slice_table) table;
  decltype(&cuda::slice_channels_workspace) workspace;
  decltype(&cuda::slice_channels) run;
};

struct CudaKernels {
  const char* (*error_string)(int cuda_error);
  decltype(&cuda::precision_workspace) precision_workspace;
  CudaKernelsOf<float> float32;
  CudaKernelsOf<double> float64;
  std::tuple<CovarianceOf<double>, CovarianceOf<float>, CovarianceOf<bfloat16>,
             CovarianceOf<float16>>
      covariances;
  decltype(&cuda::forward_selection_workspace) forward_selection_workspace;
  decltype(&cuda::elimination_workspace) elimination_workspace;
  std::tuple<InformationOf<float>, InformationOf<double>> informations;
  decltype(&cuda::marginal_mi_workspace) marginal_mi_workspace;
  decltype(&cuda::conditional_mi_workspace) conditional_mi_workspace;
  decltype(&cuda::pairwise_mi_workspace) pairwise_mi_workspace;
  SliceChannels slice_channels;
  decltype(&cuda::spanning_tree_workspace) spanning_tree_workspace;

  template <class T>
  const CudaKernelsOf<T>& of() const {
    if constexpr (std::is_same_v<T, float>) {
      return float32;
    } else {
      return float64;
    }
  }
  template <class T>
  const CovarianceOf<T>& covariance_of() const {
    return std::get<CovarianceOf<T>>(covariances);
  }
  template <class T>
  const InformationOf<T>& information_of() const {
    return std::get<InformationOf<T>>(informations);
  }
};

// The name of the capsule attribute of _cuda and of the capsule itself.
constexpr const char* kCudaKernelsCapsule = "infoslice._cuda.kernels";

}  // namespace infoslice
