// Metal's math, integer and relational functions, in plain C arithmetic: a float function is the C library's, a
// half or bfloat one is the float one rounded, a vector one goes component by component. What is not `precise::`
// is `fast::`, as MLX compiles kernels; how far off either may be: accuracy.h.
#pragma once

#include "accuracy.h"
#include "vector.h"

namespace metal {

// Over vectors; inside a function's own namespace `space`, because a call would find those of metal as well.
#define MSL_LIFT_1(space, name)                                           \
  template <typename T, int N>                                            \
  inline auto name(const vec<T, N>& a) {                                  \
    vec<decltype(space::name(a.data[0])), N> result;                      \
    for (int i = 0; i < N; ++i) result.data[i] = space::name(a.data[i]);  \
    return result;                                                        \
  }                                                                       \
  template <typename V, typename T, int S, int... I>                      \
  inline auto name(const detail::swizzle<V, T, S, I...>& a) {             \
    return space::name(V(a));                                             \
  }
#define MSL_LIFT_2(space, name)                                           \
  template <typename T, int N>                                            \
  inline vec<T, N> name(const vec<T, N>& a, const vec<T, N>& b) {         \
    vec<T, N> result;                                                     \
    for (int i = 0; i < N; ++i) result.data[i] = space::name(a.data[i], b.data[i]); \
    return result;                                                        \
  }                                                                       \
  template <typename T, int N>                                            \
  inline vec<T, N> name(const vec<T, N>& a, T b) {                        \
    return space::name(a, vec<T, N>(b));                                  \
  }
#define MSL_LIFT_3(space, name)                                           \
  template <typename T, int N>                                            \
  inline vec<T, N> name(const vec<T, N>& a, const vec<T, N>& b, const vec<T, N>& c) { \
    vec<T, N> result;                                                     \
    for (int i = 0; i < N; ++i) result.data[i] = space::name(a.data[i], b.data[i], c.data[i]); \
    return result;                                                        \
  }                                                                       \
  template <typename T, int N>                                            \
  inline vec<T, N> name(const vec<T, N>& a, T b, T c) {                   \
    return space::name(a, vec<T, N>(b), vec<T, N>(c));                    \
  }

// Float functions: overloads, not templates, so that an integer argument is ambiguous, as it is on Metal.
#define MSL_FLOAT_1(space, name, result)                                                        \
  inline float name(float a) { return result; }                                                 \
  inline half name(half a) { return half(space::name(float(a))); }                              \
  inline bfloat name(bfloat a) { return bfloat(space::name(float(a))); }                        \
  MSL_LIFT_1(space, name)
#define MSL_FLOAT_2(space, name, result)                                                        \
  inline float name(float a, float b) { return result; }                                        \
  inline half name(half a, half b) { return half(space::name(float(a), float(b))); }            \
  inline bfloat name(bfloat a, bfloat b) { return bfloat(space::name(float(a), float(b))); }    \
  MSL_LIFT_2(space, name)
// One function in both namespaces, or one each.
#define MSL_SAME(name)                                                                          \
  namespace fast { using metal::name; }                                                         \
  namespace precise { using metal::name; }
#define MSL_EXACT_1(name, builtin) MSL_FLOAT_1(metal, name, builtin(a)) MSL_SAME(name)
#define MSL_EXACT_2(name, builtin) MSL_FLOAT_2(metal, name, builtin(a, b)) MSL_SAME(name)
#define MSL_UNSTATED_1(name, builtin) MSL_FLOAT_1(metal, name, (accuracy::must_be_stated(), builtin(a))) MSL_SAME(name)
#define MSL_UNSTATED_2(name, builtin) MSL_FLOAT_2(metal, name, (accuracy::must_be_stated(), builtin(a, b))) MSL_SAME(name)
#define MSL_INEXACT(name, builtin, fast_error, precise_error)                                   \
  namespace fast { MSL_FLOAT_1(fast, name, accuracy::off(a, builtin(a), accuracy::fast_error)) } \
  namespace precise { MSL_FLOAT_1(precise, name, accuracy::off(a, builtin(a), accuracy::precise_error)) } \
  using fast::name;

#define MSL_RSQRT(a) (1.0f / __builtin_sqrtf(a))
#define MSL_EXP10(a) __builtin_powf(10.0f, a)
#define MSL_FRACT(a) __builtin_fminf((a) - __builtin_floorf(a), 0.999999940395355f)
#define MSL_SIGN(a) ((a) > 0.0f ? 1.0f : (a) < 0.0f ? -1.0f : (a) == 0.0f ? (a) : 0.0f)
#define MSL_SINPI(a) __builtin_sinf((a) * M_PI_F)
#define MSL_COSPI(a) __builtin_cosf((a) * M_PI_F)

MSL_INEXACT(exp, __builtin_expf, power, ulps<4>)
MSL_INEXACT(exp2, __builtin_exp2f, power, ulps<4>)
MSL_INEXACT(log, __builtin_logf, natural, ulps<4>)
MSL_INEXACT(log2, __builtin_log2f, binary, ulps<4>)
MSL_INEXACT(sqrt, __builtin_sqrtf, ulps<3>, none)
MSL_INEXACT(rsqrt, MSL_RSQRT, ulps<2>, none)
MSL_INEXACT(sin, __builtin_sinf, absolute<13>, ulps<4>)
MSL_INEXACT(cos, __builtin_cosf, absolute<13>, ulps<4>)
MSL_UNSTATED_1(exp10, MSL_EXP10)
MSL_UNSTATED_1(log10, __builtin_log10f)
MSL_UNSTATED_1(tan, __builtin_tanf)
MSL_UNSTATED_1(sinh, __builtin_sinhf)
MSL_UNSTATED_1(cosh, __builtin_coshf)
MSL_UNSTATED_1(tanh, __builtin_tanhf)
MSL_UNSTATED_1(asin, __builtin_asinf)
MSL_UNSTATED_1(acos, __builtin_acosf)
MSL_UNSTATED_1(atan, __builtin_atanf)
MSL_UNSTATED_1(sinpi, MSL_SINPI)
MSL_UNSTATED_1(cospi, MSL_COSPI)
MSL_UNSTATED_2(pow, __builtin_powf)
MSL_UNSTATED_2(powr, __builtin_powf)
MSL_UNSTATED_2(fmod, __builtin_fmodf)
MSL_UNSTATED_2(atan2, __builtin_atan2f)
inline float sincos(float a, float& cosine) {
  accuracy::must_be_stated();
  return cosine = __builtin_cosf(a), __builtin_sinf(a);
}
MSL_EXACT_1(floor, __builtin_floorf)
MSL_EXACT_1(ceil, __builtin_ceilf)
MSL_EXACT_1(round, __builtin_roundf)
MSL_EXACT_1(rint, __builtin_rintf)
MSL_EXACT_1(trunc, __builtin_truncf)
MSL_EXACT_1(fabs, __builtin_fabsf)
MSL_EXACT_1(fract, MSL_FRACT)
MSL_EXACT_1(sign, MSL_SIGN)
MSL_EXACT_2(copysign, __builtin_copysignf)
MSL_EXACT_2(fdim, __builtin_fdimf)

// One rounding, in the type itself; half and bfloat products are exact in float, their sums in double.
inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline half fma(half a, half b, half c) { return half(double(a) * double(b) + double(c)); }
inline bfloat fma(bfloat a, bfloat b, bfloat c) { return bfloat(__builtin_fmaf(a, b, c)); }
inline float mad(float a, float b, float c) { return a * b + c; }
inline half mad(half a, half b, half c) { return a * b + c; }
MSL_LIFT_3(metal, fma)
MSL_LIFT_3(metal, mad)

inline bool isnan(float a) { return __builtin_isnan(a); }
inline bool isinf(float a) { return __builtin_isinf(a); }
inline bool isfinite(float a) { return __builtin_isfinite(a); }
inline bool signbit(float a) { return __builtin_signbit(a); }
MSL_LIFT_1(metal, isnan)
MSL_LIFT_1(metal, isinf)
MSL_LIFT_1(metal, isfinite)

inline float ldexp(float a, int exponent) { return __builtin_ldexpf(a, exponent); }
inline float frexp(float a, int& exponent) { return __builtin_frexpf(a, &exponent); }
inline float modf(float a, float& whole) { return __builtin_modff(a, &whole); }

namespace detail {
template <typename T>
using if_scalar = std::enable_if_t<is_scalar_v<T>, T>;
template <typename T>
using if_float = std::enable_if_t<is_float_v<T>, T>;
template <typename T>
using if_integer = std::enable_if_t<is_integer_v<T>, T>;
}  // namespace detail

// Both arguments must have one type, as on Metal, where the overloads for other mixtures are ambiguous. Of a NaN
// and a number, the precise ones give the number; of the fast ones the worst give the NaN.
#define MSL_EXTREMES(space, kept)                                                                              \
  namespace space {                                                                                            \
  template <typename T> constexpr detail::if_scalar<T> min(T a, T b) {                                         \
    return a != a ? (kept ? a : b) : b < a || (kept && b != b) ? b : a;                                        \
  }                                                                                                            \
  template <typename T> constexpr detail::if_scalar<T> max(T a, T b) {                                         \
    return a != a ? (kept ? a : b) : a < b || (kept && b != b) ? b : a;                                        \
  }                                                                                                            \
  template <typename T> constexpr detail::if_scalar<T> clamp(T a, T low, T high) {                             \
    return space::min(space::max(a, low), high);                                                               \
  }                                                                                                            \
  template <typename T> constexpr detail::if_float<T> saturate(T a) { return space::clamp(a, T(0.0f), T(1.0f)); } \
  MSL_LIFT_2(space, min)                                                                                       \
  MSL_LIFT_2(space, max)                                                                                       \
  MSL_LIFT_3(space, clamp)                                                                                     \
  MSL_LIFT_1(space, saturate)                                                                                  \
  MSL_FLOAT_2(space, fmin, space::min(a, b))                                                                   \
  MSL_FLOAT_2(space, fmax, space::max(a, b))                                                                   \
  }
MSL_EXTREMES(fast, accuracy::worst)
MSL_EXTREMES(precise, false)
using fast::clamp;
using fast::fmax;
using fast::fmin;
using fast::max;
using fast::min;
using fast::saturate;

template <typename T> constexpr detail::if_scalar<T> abs(T a) { return a < T(0) ? T(-a) : a; }
template <> inline float abs(float a) { return __builtin_fabsf(a); }
template <> inline half abs(half a) { return half(__builtin_fabsf(float(a))); }
template <> inline bfloat abs(bfloat a) { return bfloat::from_bits(a.bits & 0x7FFF); }
template <typename T> detail::if_float<T> mix(T a, T b, T t) { return T(a + (b - a) * t); }
template <typename T> detail::if_float<T> step(T edge, T a) { return a < edge ? T(0.0f) : T(1.0f); }
template <typename T> detail::if_scalar<T> select(T a, T b, bool choose_b) { return choose_b ? b : a; }
MSL_LIFT_1(metal, abs)
MSL_LIFT_2(metal, step)
MSL_LIFT_3(metal, mix)
MSL_SAME(abs)
MSL_SAME(fma)

template <typename T, int N>
vec<T, N> select(const vec<T, N>& a, const vec<T, N>& b, const vec<bool, N>& choose_b) {
  vec<T, N> result;
  for (int i = 0; i < N; ++i) result.data[i] = choose_b.data[i] ? b.data[i] : a.data[i];
  return result;
}
template <int N> bool any(const vec<bool, N>& a) {
  bool result = false;
  for (int i = 0; i < N; ++i) result |= a.data[i];
  return result;
}
template <int N> bool all(const vec<bool, N>& a) {
  bool result = true;
  for (int i = 0; i < N; ++i) result &= a.data[i];
  return result;
}
template <typename T, int N> T dot(const vec<T, N>& a, const vec<T, N>& b) {
  T sum = T(a.data[0] * b.data[0]);
  for (int i = 1; i < N; ++i) sum = T(sum + a.data[i] * b.data[i]);
  return sum;
}
template <typename T, int N> T length_squared(const vec<T, N>& a) { return dot(a, a); }
template <typename T, int N> T length(const vec<T, N>& a) { return sqrt(dot(a, a)); }

template <typename T> detail::if_integer<T> popcount(T a) { return T(__builtin_popcountll(std::make_unsigned_t<T>(a))); }
template <typename T> detail::if_integer<T> clz(T a) {
  constexpr int bits = 8 * sizeof(T);
  return a == 0 ? T(bits) : T(__builtin_clzll(std::make_unsigned_t<T>(a)) - (64 - bits));
}
template <typename T> detail::if_integer<T> ctz(T a) {
  return a == 0 ? T(8 * sizeof(T)) : T(__builtin_ctzll(std::make_unsigned_t<T>(a)));
}
template <typename T> detail::if_integer<T> rotate(T a, T by) {
  using U = std::make_unsigned_t<T>;
  constexpr unsigned bits = 8 * sizeof(T);
  unsigned n = unsigned(by) % bits;
  return n == 0 ? a : T(U(U(a) << n) | U(U(a) >> (bits - n)));
}
template <typename T> detail::if_integer<T> reverse_bits(T a) {
  T result = 0;
  for (unsigned i = 0; i < 8 * sizeof(T); ++i) result = T(result << 1 | (a >> i & 1));
  return result;
}
template <typename T> detail::if_integer<T> extract_bits(T a, uint offset, uint count) {
  if (count == 0) return 0;
  unsigned bits = 8 * sizeof(T);
  return T(T(a << (bits - offset - count)) >> (bits - count));
}
template <typename T> detail::if_integer<T> insert_bits(T base, T insert, uint offset, uint count) {
  using U = std::make_unsigned_t<T>;
  U mask = U((count >= 8 * sizeof(T) ? ~U(0) : U((U(1) << count) - 1)) << offset);
  return T((U(base) & ~mask) | (U(U(insert) << offset) & mask));
}
inline uint mulhi(uint a, uint b) { return uint(ulong(a) * b >> 32); }
inline int mulhi(int a, int b) { return int(long(a) * b >> 32); }
template <typename T> detail::if_integer<T> absdiff(T a, T b) { return a > b ? T(a - b) : T(b - a); }

}  // namespace metal

template <typename To, typename From>
inline To as_type(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "as_type needs types of one size");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}
template <typename To, typename V, typename T, int S, int... I>
inline To as_type(const metal::detail::swizzle<V, T, S, I...>& from) {
  return as_type<To>(V(from));
}
