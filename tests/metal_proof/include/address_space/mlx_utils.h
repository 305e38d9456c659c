// What MLX puts in front of every custom kernel, as far as kernels use it: declarations that mirror its utils.h.
#pragma once

typedef bfloat bfloat16_t;
typedef half float16_t;
struct complex64_t {
  float real, imag;
};

template <typename U>
struct Limits {
  static constexpr constant U max = numeric_limits<U>::max();
  static constexpr constant U min = numeric_limits<U>::min();
  static constexpr constant U finite_max = numeric_limits<U>::max();
  static constexpr constant U finite_min = numeric_limits<U>::lowest();
};

template <typename Index = int64_t>
Index elem_to_loc(Index element, constant const int* shape, constant const int64_t* strides, int ndim);
template <typename T, typename U> T ceildiv(T, U);
template <typename U, typename T> U cast_to(T);
uint16_t bfloat16_to_uint16(bfloat);
bfloat uint16_to_bfloat16(uint16_t);
float log1p(float);
