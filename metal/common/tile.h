#include <metal_simdgroup>
#include <metal_simdgroup_matrix>
#include "float32.h"

// The places of a simdgroup matrix. Each lane holds two neighbouring elements of a row of the 8 x 8 tile: the
// layout of Apple's GPUs, on which MLX's own kernels rely as well.
inline uint tile_row(uint lane) {
  return (lane / 4 & 4) + lane / 2 % 4;
}
inline uint tile_column(uint lane) {
  return (lane / 4 & 2) * 2 + lane % 2 * 2;
}

// Over the four lanes that share a row.
inline float across_row_max(float value) {
  value = larger(value, simd_shuffle_xor(value, ushort(1)));
  return larger(value, simd_shuffle_xor(value, ushort(8)));
}
inline float across_row_sum(float value) {
  value += simd_shuffle_xor(value, ushort(1));
  return value + simd_shuffle_xor(value, ushort(8));
}
