// INFOSLICE_WIDEST: one kernel source, one entry point per register width, the widest chosen at run
// time.
//
// `body` is an always-inline template over the register width in bytes. The width is a template
// parameter and not hidden behind one fixed vector type because GCC keeps vectors wider than a
// register in memory: 64-byte vectors compiled for AVX2 ran ten times slower than 32-byte ones.
#pragma once

#include "common/simd.h"

#if INFOSLICE_MULTIVERSION
#define INFOSLICE_WIDEST(R, name, PARAMETERS, body, ARGUMENTS)                             \
  INFOSLICE_TARGET_V4 static R name##_v4 PARAMETERS { return body<64> ARGUMENTS; }         \
  INFOSLICE_TARGET_V3 static R name##_v3 PARAMETERS { return body<32> ARGUMENTS; }         \
  static R name##_baseline PARAMETERS { return body<16> ARGUMENTS; }                       \
  R name PARAMETERS {                                                                      \
    using Entry = R(*) PARAMETERS; /* picks the overload of this element type */           \
    static const Entry entry = cpu_level() == CpuLevel::v4 ? static_cast<Entry>(name##_v4) \
                               : cpu_level() == CpuLevel::v3                               \
                                   ? static_cast<Entry>(name##_v3)                         \
                                   : static_cast<Entry>(name##_baseline);                  \
    return entry ARGUMENTS;                                                                \
  }
#else
#define INFOSLICE_WIDEST(R, name, PARAMETERS, body, ARGUMENTS) \
  R name PARAMETERS { return body<16> ARGUMENTS; }
#endif
