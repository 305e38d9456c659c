// vec<T, N> with component names and the usual swizzles. Three components occupy the room of four, as on Metal.
#pragma once

#include "scalar.h"

namespace metal {

template <typename T, int N>
struct vec;

namespace detail {

// A view of some components of a vector, in some order: `v.xy`, `v.zw = ...`. It lies over the vector's own
// storage, so assignment must write the named components and never copy the whole.
template <typename V, typename T, int Storage, int... I>
struct swizzle {
  T data[Storage];

  operator V() const { return V(data[I]...); }
  swizzle& operator=(const V& value) {
    int at = 0;
    ((data[I] = value.data[at++]), ...);
    return *this;
  }
  swizzle& operator=(const swizzle& other) { return *this = V(other); }
  swizzle& operator+=(const V& value) { return *this = V(*this) + value; }
  swizzle& operator-=(const V& value) { return *this = V(*this) - value; }
  swizzle& operator*=(const V& value) { return *this = V(*this) * value; }
  swizzle& operator/=(const V& value) { return *this = V(*this) / value; }
};

// Two names per component and every pair; of the longer ones those that kernels use.
#define MSL_PAIRS(S) \
  S(2, xx, 0, 0) S(2, xy, 0, 1) S(2, yx, 1, 0) S(2, yy, 1, 1)
#define MSL_PAIRS_3(S) \
  S(2, xz, 0, 2) S(2, yz, 1, 2) S(2, zx, 2, 0) S(2, zy, 2, 1) S(3, xyz, 0, 1, 2) S(3, zyx, 2, 1, 0) S(3, xxx, 0, 0, 0)
#define MSL_PAIRS_4(S)                                                                                       \
  S(2, xw, 0, 3) S(2, yw, 1, 3) S(2, zw, 2, 3) S(2, wx, 3, 0) S(2, wz, 3, 2) S(3, yzw, 1, 2, 3)              \
  S(4, xyzw, 0, 1, 2, 3) S(4, wzyx, 3, 2, 1, 0) S(4, yxwz, 1, 0, 3, 2) S(4, zwxy, 2, 3, 0, 1)                \
  S(4, xxyy, 0, 0, 1, 1) S(4, zzww, 2, 2, 3, 3) S(4, xyxy, 0, 1, 0, 1) S(4, xzyw, 0, 2, 1, 3)                \
  S(4, xxxx, 0, 0, 0, 0) S(4, yyyy, 1, 1, 1, 1)

template <typename T, int N>
struct storage;
#define MSL_SWIZZLE_2(count, name, ...) swizzle<vec<T, count>, T, 2, __VA_ARGS__> name;
#define MSL_SWIZZLE_4(count, name, ...) swizzle<vec<T, count>, T, 4, __VA_ARGS__> name;

template <typename T>
struct alignas(2 * sizeof(T)) storage<T, 2> {
  union {
    T data[2];
    struct { T x, y; };
    struct { T r, g; };
    MSL_PAIRS(MSL_SWIZZLE_2)
  };
};
template <typename T>
struct alignas(4 * sizeof(T)) storage<T, 3> {
  union {
    T data[4];
    struct { T x, y, z; };
    struct { T r, g, b; };
    MSL_PAIRS(MSL_SWIZZLE_4)
    MSL_PAIRS_3(MSL_SWIZZLE_4)
  };
};
template <typename T>
struct alignas(4 * sizeof(T)) storage<T, 4> {
  union {
    T data[4];
    struct { T x, y, z, w; };
    struct { T r, g, b, a; };
    MSL_PAIRS(MSL_SWIZZLE_4)
    MSL_PAIRS_3(MSL_SWIZZLE_4)
    MSL_PAIRS_4(MSL_SWIZZLE_4)
  };
};

// How many components an argument of a constructor brings.
template <typename A>
struct width : std::integral_constant<int, 1> {};
template <typename T, int N>
struct width<vec<T, N>> : std::integral_constant<int, N> {};
template <typename V, typename T, int S, int... I>
struct width<swizzle<V, T, S, I...>> : std::integral_constant<int, sizeof...(I)> {};

}  // namespace detail

#define MSL_FRIEND_OPERATOR(op)                                                  \
  friend vec operator op(const vec& a, const vec& b) {                           \
    vec result;                                                                  \
    for (int i = 0; i < N; ++i) result.data[i] = T(a.data[i] op b.data[i]);      \
    return result;                                                               \
  }                                                                              \
  vec& operator op##=(const vec& other) { return *this = *this op other; }
#define MSL_FRIEND_COMPARISON(op)                                                \
  friend vec<bool, N> operator op(const vec& a, const vec& b) {                  \
    vec<bool, N> result;                                                         \
    for (int i = 0; i < N; ++i) result.data[i] = a.data[i] op b.data[i];         \
    return result;                                                               \
  }
// Only integer vectors have these; a template is not instantiated for the others.
#define MSL_INTEGER_OPERATOR(op)                                                 \
  template <typename U = T, typename = std::enable_if_t<is_integer_v<U>>>        \
  friend vec operator op(const vec& a, const vec& b) {                           \
    vec result;                                                                  \
    for (int i = 0; i < N; ++i) result.data[i] = T(a.data[i] op b.data[i]);      \
    return result;                                                               \
  }                                                                              \
  vec& operator op##=(const vec& other) { return *this = *this op other; }

template <typename T, int N>
struct vec : detail::storage<T, N> {
  using element = T;
  using detail::storage<T, N>::data;

  vec() = default;
  vec(const vec& other) { copy(other.data); }
  vec& operator=(const vec& other) { return copy(other.data); }
  template <typename S, typename = std::enable_if_t<detail::width<S>::value == 1 && std::is_convertible<S, float>::value>>
  vec(S all) {
    for (int i = 0; i < N; ++i) data[i] = T(all);
  }
  template <typename U, typename = std::enable_if_t<!std::is_same<U, T>::value>>
  explicit vec(const vec<U, N>& other) {
    for (int i = 0; i < N; ++i) data[i] = T(other.data[i]);
  }
  template <typename V, typename U, int S, int... I,
            typename = std::enable_if_t<sizeof...(I) == N && !std::is_same<U, T>::value>>
  explicit vec(const detail::swizzle<V, U, S, I...>& other) : vec(V(other)) {}
  template <typename A, typename B, typename... Rest,
            typename = std::enable_if_t<(detail::width<A>::value + detail::width<B>::value) + (0 + ... + detail::width<Rest>::value) == N>>
  vec(const A& first, const B& second, const Rest&... rest) {
    int at = 0;
    put(at, first), put(at, second), (put(at, rest), ...);
  }

  T& operator[](int i) { return data[i]; }
  const T& operator[](int i) const { return data[i]; }

  friend vec operator-(const vec& a) {
    vec result;
    for (int i = 0; i < N; ++i) result.data[i] = T(-a.data[i]);
    return result;
  }
  MSL_FRIEND_OPERATOR(+)
  MSL_FRIEND_OPERATOR(-)
  MSL_FRIEND_OPERATOR(*)
  MSL_FRIEND_OPERATOR(/)
  MSL_INTEGER_OPERATOR(%)
  MSL_INTEGER_OPERATOR(&)
  MSL_INTEGER_OPERATOR(|)
  MSL_INTEGER_OPERATOR(^)
  MSL_INTEGER_OPERATOR(<<)
  MSL_INTEGER_OPERATOR(>>)
  MSL_FRIEND_COMPARISON(==)
  MSL_FRIEND_COMPARISON(!=)
  MSL_FRIEND_COMPARISON(<)
  MSL_FRIEND_COMPARISON(<=)
  MSL_FRIEND_COMPARISON(>)
  MSL_FRIEND_COMPARISON(>=)
  MSL_FRIEND_COMPARISON(&&)
  MSL_FRIEND_COMPARISON(||)

 private:
  vec& copy(const T* from) {
    for (int i = 0; i < N; ++i) data[i] = from[i];
    return *this;
  }
  template <typename S>
  void put(int& at, const S& scalar) {
    data[at++] = T(scalar);
  }
  template <typename U, int M>
  void put(int& at, const vec<U, M>& part) {
    for (int i = 0; i < M; ++i) data[at++] = T(part.data[i]);
  }
  template <typename V, typename U, int S, int... I>
  void put(int& at, const detail::swizzle<V, U, S, I...>& part) {
    put(at, V(part));
  }
};

// Components without the padding and alignment of vec.
template <typename T, int N>
struct packed_vec {
  T data[N];
  packed_vec() = default;
  packed_vec(const vec<T, N>& value) {
    for (int i = 0; i < N; ++i) data[i] = value.data[i];
  }
  operator vec<T, N>() const {
    vec<T, N> result;
    for (int i = 0; i < N; ++i) result.data[i] = data[i];
    return result;
  }
  T& operator[](int i) { return data[i]; }
  const T& operator[](int i) const { return data[i]; }
};

#define MSL_VECTOR_TYPES(name)                  \
  typedef vec<name, 2> name##2;                 \
  typedef vec<name, 3> name##3;                 \
  typedef vec<name, 4> name##4;                 \
  typedef packed_vec<name, 2> packed_##name##2; \
  typedef packed_vec<name, 3> packed_##name##3; \
  typedef packed_vec<name, 4> packed_##name##4;
MSL_VECTOR_TYPES(bool)
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

}  // namespace metal
