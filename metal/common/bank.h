#include "quantised.h"
#include "tile.h"

// Matrix `id` of a bank whose matrices lie `strides[0]` elements apart; its rows have no gaps.
template <typename S>
Matrix<S> matrix_of(
    const device uint32_t* codes,
    int64_t codes_stride,
    const device S* scales,
    int64_t scales_stride,
    const device S* biases,
    int64_t biases_stride,
    uint id) {
  Matrix<S> matrix;
  matrix.codes = codes + id * codes_stride;
  matrix.scales = scales + id * scales_stride;
  matrix.biases = biases + id * biases_stride;
  return matrix;
}

// A 32 x 32 tile of products, 32 rows of x with 32 rows of a matrix: four simdgroups of 128 threads make a
// quarter each, four simdgroup matrices. `rows` are x's, width apart, of which `valid` exist.
enum { PITCH = 36 };  // of a staged row: 32 values and a gap against bank conflicts

template <typename X>
void stage_rows(const device X* x, const threadgroup uint* rows, uint valid, uint width, uint block, uint thread_index,
                threadgroup float* to) {
  const uint row = thread_index / 4;
  const uint column = thread_index % 4 * 8;
  for (uint i = 0; i < 8; i += 4) {
    if (row < valid) {
      const vec<X, 4> four = *(const device vec<X, 4>*)(x + ulong(rows[row]) * width + block * 32 + column + i);
      for (uint j = 0; j < 4; j++) {
        to[row * PITCH + column + i + j] = float(four[j]);
      }
    } else {
      for (uint j = 0; j < 4; j++) {
        to[row * PITCH + column + i + j] = 0.0f;
      }
    }
  }
}

inline void multiply_quarter(
    const threadgroup float* x,
    const threadgroup float* w,
    uint simdgroup_index,
    thread simdgroup_matrix<float, 8, 8>* sums) {
  const threadgroup float* rows = x + simdgroup_index / 2 * 16 * PITCH;
  const threadgroup float* columns = w + simdgroup_index % 2 * 16 * PITCH;
  for (uint k = 0; k < 32; k += 8) {
    simdgroup_matrix<float, 8, 8> left[2], right[2];
    for (uint i = 0; i < 2; i++) {
      simdgroup_load(left[i], rows + i * 8 * PITCH + k, PITCH);
      simdgroup_load(right[i], columns + i * 8 * PITCH + k, PITCH, ulong2(0, 0), true);
    }
    for (uint i = 0; i < 4; i++) {
      simdgroup_multiply_accumulate(sums[i], left[i / 2], right[i % 2], sums[i]);
    }
  }
}
