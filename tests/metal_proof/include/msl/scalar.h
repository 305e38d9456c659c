// Scalar types: half is the compiler's own _Float16; bfloat is a struct, because the compilers' __bf16 converts
// from float implicitly, which Metal's bfloat does not.
#pragma once

#include <float.h>
#include <limits.h>
#include <stddef.h>
#include <stdint.h>

#include <limits>
#include <type_traits>

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef _Float16 half;

struct bfloat {
  uint16_t bits;

  bfloat() = default;
  constexpr explicit bfloat(float value) : bits(round(value)) {}
  template <typename T, typename = std::enable_if_t<std::is_arithmetic<T>::value || std::is_same<T, half>::value>>
  constexpr explicit bfloat(T value) : bfloat(static_cast<float>(value)) {}

  constexpr operator float() const { return __builtin_bit_cast(float, static_cast<uint32_t>(bits) << 16); }

  constexpr bfloat operator-() const { return from_bits(bits ^ 0x8000); }
  constexpr bfloat& operator+=(bfloat other) { return *this = bfloat(float(*this) + float(other)); }
  constexpr bfloat& operator-=(bfloat other) { return *this = bfloat(float(*this) - float(other)); }
  constexpr bfloat& operator*=(bfloat other) { return *this = bfloat(float(*this) * float(other)); }
  constexpr bfloat& operator/=(bfloat other) { return *this = bfloat(float(*this) / float(other)); }

  static constexpr bfloat from_bits(uint32_t pattern) {
    bfloat result(0.0f);
    result.bits = static_cast<uint16_t>(pattern);
    return result;
  }

 private:
  // To nearest, ties to even; a NaN keeps its sign and stays a NaN.
  static constexpr uint16_t round(float value) {
    uint32_t pattern = __builtin_bit_cast(uint32_t, value);
    if ((pattern & 0x7FFFFFFF) > 0x7F800000) return static_cast<uint16_t>(pattern >> 16 | 0x40);
    return static_cast<uint16_t>((pattern + 0x7FFF + (pattern >> 16 & 1)) >> 16);
  }
};

// bfloat with bfloat stays bfloat; with float or int the conversion to float decides.
constexpr bfloat operator+(bfloat a, bfloat b) { return a += b; }
constexpr bfloat operator-(bfloat a, bfloat b) { return a -= b; }
constexpr bfloat operator*(bfloat a, bfloat b) { return a *= b; }
constexpr bfloat operator/(bfloat a, bfloat b) { return a /= b; }

constexpr half operator""h(long double value) { return half(value); }
constexpr half operator""H(long double value) { return half(value); }
constexpr bfloat operator""bf(long double value) { return bfloat(float(value)); }

namespace metal {

using std::conditional;
using std::conditional_t;
using std::enable_if;
using std::enable_if_t;
using std::integral_constant;
using std::is_same;
using std::is_same_v;
using std::true_type;
using std::false_type;
using ::size_t;

template <typename T>
inline constexpr bool is_float_v = std::is_same<T, float>::value || std::is_same<T, half>::value ||
                                   std::is_same<T, bfloat>::value;
template <typename T>
inline constexpr bool is_integer_v = std::is_integral<T>::value;
template <typename T>
inline constexpr bool is_scalar_v = is_float_v<T> || is_integer_v<T>;
template <typename T>
inline constexpr bool is_floating_point_v = is_float_v<T>;
template <typename T>
inline constexpr bool is_integral_v = is_integer_v<T>;
template <typename T>
struct is_floating_point : std::bool_constant<is_float_v<T>> {};
template <typename T>
struct is_integral : std::is_integral<T> {};

template <typename T>
struct numeric_limits : std::numeric_limits<T> {};

template <>
struct numeric_limits<half> {
  static constexpr half max() { return half(65504.0f); }
  static constexpr half min() { return half(6.103515625e-05f); }
  static constexpr half lowest() { return half(-65504.0f); }
  static constexpr half epsilon() { return half(0.0009765625f); }
  static constexpr half infinity() { return half(__builtin_inff()); }
  static constexpr half quiet_NaN() { return half(__builtin_nanf("")); }
};

template <>
struct numeric_limits<bfloat> {
  static constexpr bfloat max() { return bfloat::from_bits(0x7F7F); }
  static constexpr bfloat min() { return bfloat::from_bits(0x0080); }
  static constexpr bfloat lowest() { return bfloat::from_bits(0xFF7F); }
  static constexpr bfloat epsilon() { return bfloat::from_bits(0x3C00); }
  static constexpr bfloat infinity() { return bfloat::from_bits(0x7F80); }
  static constexpr bfloat quiet_NaN() { return bfloat::from_bits(0x7FC0); }
};

}  // namespace metal

#undef INFINITY
#undef NAN
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define HUGE_VALF __builtin_inff()
#define HALF_MAX 65504.0h
#define HALF_MIN 6.103515625e-05h
#define M_PI_F 3.14159265358979323846f
#define M_E_F 2.71828182845904523536f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LN2_F 0.693147180559945309417f
#define M_SQRT2_F 1.41421356237309504880f
