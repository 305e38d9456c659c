// How far off a float function is: not at all or, with PROOF_WORST_FUNCTIONS, by all that Metal's specification
// allows (8.4: table 8.1 for `precise::`, 8.2 for `fast::`), up or down by the bits of its argument. Of each kind of
// error a function from argument and exact result to the absolute error.
#pragma once

#include "scalar.h"

namespace metal {
namespace accuracy {

#if defined(PROOF_WORST_FUNCTIONS)
constexpr bool worst = true;
// Of some functions the fast error follows from others': a kernel that calls one doesn't compile.
__attribute__((error("this function's error is not modelled, see include/msl/accuracy.h"))) void must_be_stated();
#else
constexpr bool worst = false;
inline void must_be_stated() {}
#endif

inline float ulp(float y) { return y == 0.0f ? 0.0f : __builtin_ldexpf(1.0f, __builtin_ilogbf(y) - 23); }

template <typename Error>
inline float off(float a, float exact, Error error) {
  if (!worst || !__builtin_isfinite(exact)) return exact;
  const bool up = __builtin_bit_cast(uint32_t, a) * 0x9E3779B1u >> 31;
  return up ? exact + error(a, exact) : exact - error(a, exact);
}

inline float none(float, float) { return 0.0f; }
template <int N>
inline float ulps(float, float y) { return N * ulp(y); }
// Never below 0.
inline float power(float a, float y) { return __builtin_fminf((3 + __builtin_floorf(__builtin_fabsf(2 * a))) * ulp(y), y); }
template <int Bits>
inline float absolute(float, float) { return __builtin_ldexpf(1.0f, -Bits); }
inline bool near_1(float a) { return a >= 0.5f && a <= 2.0f; }
inline float natural(float a, float y) { return near_1(a) ? absolute<21>(a, y) : 3 * ulp(y); }
inline float binary(float a, float y) { return near_1(a) ? absolute<22>(a, y) : 2 * ulp(y); }

}  // namespace accuracy
}  // namespace metal
