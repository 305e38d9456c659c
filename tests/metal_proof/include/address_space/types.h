// Scalar and vector types of the parse pass.
#pragma once

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long int64_t;
typedef unsigned long uint64_t;
typedef __SIZE_TYPE__ size_t;
typedef __PTRDIFF_TYPE__ ptrdiff_t;

// Laxer than Metal's: converts from float implicitly, which the execution pass refuses.
typedef __bf16 bfloat;

namespace metal {

template <typename T, int N> using vec = T __attribute__((ext_vector_type(N)));

template <typename T> struct identity { typedef T type; };
// In a parameter: takes part in conversion, not in deduction.
template <typename T> using identity_t = typename identity<T>::type;
template <typename A, typename B> inline __constant constexpr bool is_same_v = false;
template <typename A> inline __constant constexpr bool is_same_v<A, A> = true;
template <typename A, typename B> struct is_same { static __constant constexpr bool value = is_same_v<A, B>; };
template <bool C, typename T = void> struct enable_if {};
template <typename T> struct enable_if<true, T> { typedef T type; };
template <bool C, typename T = void> using enable_if_t = typename enable_if<C, T>::type;
template <bool C, typename A, typename B> struct conditional { typedef A type; };
template <typename A, typename B> struct conditional<false, A, B> { typedef B type; };
template <bool C, typename A, typename B> using conditional_t = typename conditional<C, A, B>::type;
template <typename T>
inline __constant constexpr bool is_floating_point_v = is_same_v<T, float> || is_same_v<T, half> || is_same_v<T, bfloat>;
template <typename T> inline __constant constexpr bool is_integral_v = !is_floating_point_v<T> && __is_integral(T);

template <typename T> struct element_of { typedef T type; typedef bool truth; };
template <typename T, int N> struct element_of<T __attribute__((ext_vector_type(N)))> {
  typedef T type;
  typedef vec<int, N> truth;
};
template <typename T> using element_t = typename element_of<T>::type;
template <typename T> using truth_t = typename element_of<T>::truth;

// The values do not matter here, but constant expressions must have one.
template <typename T> struct numeric_limits {
  static constexpr T max() { return T(0); }
  static constexpr T min() { return T(0); }
  static constexpr T lowest() { return T(0); }
  static constexpr T epsilon() { return T(0); }
  static constexpr T infinity() { return T(0); }
  static constexpr T quiet_NaN() { return T(0); }
};

template <typename To, typename... Parts> To make_vector(Parts...);

#define MSL_VECTOR_TYPES(name)   \
  typedef vec<name, 2> name##2; \
  typedef vec<name, 3> name##3; \
  typedef vec<name, 4> name##4; \
  struct packed_##name##3 {     \
    name data[3];               \
    operator name##3() const;   \
  };
MSL_VECTOR_TYPES(char)
MSL_VECTOR_TYPES(uchar)
MSL_VECTOR_TYPES(short)
MSL_VECTOR_TYPES(ushort)
MSL_VECTOR_TYPES(int)
MSL_VECTOR_TYPES(uint)
MSL_VECTOR_TYPES(long)
MSL_VECTOR_TYPES(ulong)
MSL_VECTOR_TYPES(half)
MSL_VECTOR_TYPES(float)
MSL_VECTOR_TYPES(bfloat)
// A comparison of vectors of float or int gives vectors of int here.
typedef vec<int, 2> bool2;
typedef vec<int, 3> bool3;
typedef vec<int, 4> bool4;

}  // namespace metal

// `float4(a, b)` builds a vector in Metal; in OpenCL it would be a comma expression. Only a name followed by a
// parenthesis is replaced, so declarations are left alone.
#define char2(...) make_vector<char2>(__VA_ARGS__)
#define char3(...) make_vector<char3>(__VA_ARGS__)
#define char4(...) make_vector<char4>(__VA_ARGS__)
#define uchar2(...) make_vector<uchar2>(__VA_ARGS__)
#define uchar3(...) make_vector<uchar3>(__VA_ARGS__)
#define uchar4(...) make_vector<uchar4>(__VA_ARGS__)
#define short2(...) make_vector<short2>(__VA_ARGS__)
#define short4(...) make_vector<short4>(__VA_ARGS__)
#define ushort2(...) make_vector<ushort2>(__VA_ARGS__)
#define ushort3(...) make_vector<ushort3>(__VA_ARGS__)
#define ushort4(...) make_vector<ushort4>(__VA_ARGS__)
#define int2(...) make_vector<int2>(__VA_ARGS__)
#define int3(...) make_vector<int3>(__VA_ARGS__)
#define int4(...) make_vector<int4>(__VA_ARGS__)
#define uint2(...) make_vector<uint2>(__VA_ARGS__)
#define uint3(...) make_vector<uint3>(__VA_ARGS__)
#define uint4(...) make_vector<uint4>(__VA_ARGS__)
#define ulong2(...) make_vector<ulong2>(__VA_ARGS__)
#define half2(...) make_vector<half2>(__VA_ARGS__)
#define half3(...) make_vector<half3>(__VA_ARGS__)
#define half4(...) make_vector<half4>(__VA_ARGS__)
#define bfloat2(...) make_vector<bfloat2>(__VA_ARGS__)
#define bfloat4(...) make_vector<bfloat4>(__VA_ARGS__)
#define float2(...) make_vector<float2>(__VA_ARGS__)
#define float3(...) make_vector<float3>(__VA_ARGS__)
#define float4(...) make_vector<float4>(__VA_ARGS__)

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define HUGE_VALF __builtin_inff()
#define FLT_MAX 3.402823466e+38f
#define FLT_MIN 1.175494351e-38f
#define FLT_EPSILON 1.192092896e-07f
#define HALF_MAX 65504.0h
#define HALF_MIN 6.103515625e-05h
#define INT_MAX 0x7FFFFFFF
#define INT_MIN (-INT_MAX - 1)
#define UINT_MAX 0xFFFFFFFFu
#define M_PI_F 3.14159265358979323846f
#define M_E_F 2.71828182845904523536f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LN2_F 0.693147180559945309417f
#define M_SQRT2_F 1.41421356237309504880f
