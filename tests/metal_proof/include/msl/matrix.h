// simdgroup_matrix: each lane holds two neighbouring elements of the 8 x 8 tile.
#pragma once

#include "simd.h"

namespace metal {

template <typename T, int Columns, int Rows>
struct simdgroup_matrix {
  static_assert(Columns == 8 && Rows == 8, "Metal has 8 x 8 simdgroup matrices only");
  static_assert(is_float_v<T>, "Metal has simdgroup matrices of float, half and bfloat only");
  vec<T, 2> elements;

  // Not initialised on Metal: all ones is a NaN, which shows.
  simdgroup_matrix() { __builtin_memset(static_cast<void*>(&elements), 0xFF, sizeof elements); }
  // The argument fills the diagonal.
  explicit simdgroup_matrix(T diagonal, int line = __builtin_LINE());
  vec<T, 2>& thread_elements() { return elements; }
  const vec<T, 2>& thread_elements() const { return elements; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

namespace detail {

// Where a lane's elements lie: the layout of Apple's GPUs, on which MLX's own kernels rely.
constexpr int tile_row(int lane) { return (lane / 4 & 4) + (lane / 2) % 4; }
constexpr int tile_column(int lane) { return (lane / 4 & 2) * 2 + (lane % 2) * 2; }

// A matrix operation needs the whole simdgroup: when checking, its lanes meet, and a lane that is missing shows.
struct meet {
  static constexpr bool needs_source = true;
  static void apply(slots<uint> slot, uint32_t lanes) {
    for (uint32_t rest = lanes; rest; rest &= rest - 1)
      if (lanes != ~0u) slot[__builtin_ctz(rest)]->argument = ~0u;
  }
};
inline int matrix_lane(int line) {
#if defined(PROOF_CHECK)
  exchange<meet>(0u, 0u, 0, line);
#endif
  (void)line;
  return int(proof_lane());
}

#if defined(PROOF_CHECK)
struct matrix_access {
  matrix_access() { proof_matrix_access(1); }
  ~matrix_access() { proof_matrix_access(0); }
};
#else
struct matrix_access {
  matrix_access() {}
};
#endif

}  // namespace detail

template <typename T, int C, int R>
simdgroup_matrix<T, C, R>::simdgroup_matrix(T diagonal, int line) {
  int lane = detail::matrix_lane(line);
  for (int i = 0; i < 2; ++i) elements.data[i] = detail::tile_row(lane) == detail::tile_column(lane) + i ? diagonal : T(0.0f);
}

template <typename T, int C, int R>
simdgroup_matrix<T, C, R> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, C, R> result;
  result.elements = vec<T, 2>(value);
  return result;
}

namespace detail {
inline size_t tile_offset(int lane, int i, ulong per_row, ulong2 origin, bool transposed) {
  ulong row = tile_row(lane), column = tile_column(lane) + i;
  return transposed ? (origin.y + column) * per_row + origin.x + row
                    : (origin.y + row) * per_row + origin.x + column;
}

}  // namespace detail

template <typename T, typename U>
inline void simdgroup_load(simdgroup_matrix<T, 8, 8>& matrix, const U* from, ulong elements_per_row = 8,
                           ulong2 origin = 0, bool transposed = false, int line = __builtin_LINE()) {
  static_assert(std::is_same<T, U>::value, "simdgroup_load needs a pointer to the matrix's own element type");
  int lane = detail::matrix_lane(line);
  detail::matrix_access inside;
  for (int i = 0; i < 2; ++i)
    matrix.elements.data[i] = from[detail::tile_offset(lane, i, elements_per_row, origin, transposed)];
}

template <typename T, typename U>
inline void simdgroup_store(const simdgroup_matrix<T, 8, 8>& matrix, U* to, ulong elements_per_row = 8,
                            ulong2 origin = 0, bool transposed = false, int line = __builtin_LINE()) {
  static_assert(std::is_same<T, U>::value, "simdgroup_store needs a pointer to the matrix's own element type");
  int lane = detail::matrix_lane(line);
  detail::matrix_access inside;
  for (int i = 0; i < 2; ++i)
    to[detail::tile_offset(lane, i, elements_per_row, origin, transposed)] = matrix.elements.data[i];
}

namespace detail {

template <typename A, typename B, typename C>
struct product_terms {
  vec<A, 2> a;
  vec<B, 2> b;
  vec<C, 2> c;
};

// d = a * b + c, summed in float whatever the types: how wide a GPU sums half tiles is not documented.
struct multiply {
  static constexpr bool needs_source = true;
  template <typename Terms>
  static void apply(slots<Terms> slot, uint32_t lanes) {
    float a[8][8] = {}, b[8][8] = {};
    for (uint32_t rest = lanes; rest; rest &= rest - 1) {
      int lane = __builtin_ctz(rest);
      for (int i = 0; i < 2; ++i) {
        a[tile_row(lane)][tile_column(lane) + i] = float(slot[lane]->in.a.data[i]);
        b[tile_row(lane)][tile_column(lane) + i] = float(slot[lane]->in.b.data[i]);
      }
    }
    for (uint32_t rest = lanes; rest; rest &= rest - 1) {
      int lane = __builtin_ctz(rest);
      if (lanes != ~0u) slot[lane]->argument = ~0u;
      for (int i = 0; i < 2; ++i) {
        auto& c = slot[lane]->out.c.data[i];
        float sum = float(c);
        for (int k = 0; k < 8; ++k) sum += a[tile_row(lane)][k] * b[k][tile_column(lane) + i];
        c = std::decay_t<decltype(c)>(sum);
      }
    }
  }
};

}  // namespace detail

template <typename D, typename A, typename B, typename C>
inline void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a,
                                          const simdgroup_matrix<B, 8, 8>& b, const simdgroup_matrix<C, 8, 8>& c,
                                          int line = __builtin_LINE()) {
  detail::product_terms<A, B, C> terms{a.elements, b.elements, c.elements};
  d.elements = vec<D, 2>(detail::exchange<detail::multiply>(terms, terms, 0, line).c);
}
template <typename D, typename A, typename B>
inline void simdgroup_multiply(simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a,
                               const simdgroup_matrix<B, 8, 8>& b, int line = __builtin_LINE()) {
  simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<D, 8, 8>(D(0.0f)), line);
}
template <typename T>
inline simdgroup_matrix<T, 8, 8> operator*(const simdgroup_matrix<T, 8, 8>& a, const simdgroup_matrix<T, 8, 8>& b) {
  simdgroup_matrix<T, 8, 8> d;
  simdgroup_multiply(d, a, b);
  return d;
}

}  // namespace metal
