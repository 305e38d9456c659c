// Metal Shading Language as plain C++, for running a kernel on the CPU (see tests/metal_proof/README.md). Everything
// lies in namespace metal, as on Metal; what is missing here is not supported, and does not compile.
#pragma once

#include "msl/atomic.h"
#include "msl/matrix.h"

namespace proof {

// A `threadgroup T name[n];` in the source becomes a reference to this (rewrite.py).
template <typename T>
inline T& threadgroup_variable(int id, const char* name) {
  return *static_cast<T*>(proof_threadgroup_memory(id, sizeof(T), alignof(T), name));
}

inline metal::uint3 triple(const uint32_t (&values)[3]) { return {values[0], values[1], values[2]}; }
inline uint volume(const uint32_t (&values)[3]) { return values[0] * values[1] * values[2]; }

}  // namespace proof

using namespace metal;

#define METAL_FUNC inline __attribute__((always_inline))
#define __METAL_VERSION__ 310

// One address space here; parse.py is what tells them apart. After every system header, because these are
// common words.
#define kernel
#define device
#define constant
#define thread
#define threadgroup
