#include "bank.h"

// body: rows
  // out[t, g] = matrix g times x[t, g]: x [N, G, I], G matrices of R rows and I columns -> out [N, G, R].
  // A simdgroup makes CHANNELS neighbouring values of one group and row.
  // grid: (32 x ceil(R / CHANNELS), G, N); threadgroup: 64.
  const uint group = threadgroup_position_in_grid.y;
  const uint row = threadgroup_position_in_grid.z;
  const uint groups = x_shape[1];
  const uint rank = codes_shape[1];
  const uint width = x_shape[2];
  const uint first = thread_position_in_grid.x / 32 * CHANNELS;
  const Matrix<S> matrix = matrix_of<S>(
      codes, codes_strides[0], scales, scales_strides[0], biases, biases_strides[0], group);
  float sums[CHANNELS];
  row_products<MODE, BITS, GROUP, CHANNELS, 1>(
      x + (ulong(row) * groups + group) * width, matrix, width / 32, first, rank, thread_index_in_simdgroup,
      sums);
  for (uint i = 0; i < CHANNELS; i++) {
    if (thread_index_in_simdgroup == i && first + i < rank) {
      out[(ulong(row) * groups + group) * rank + first + i] = X(sums[i]);
    }
  }

// body: tiles
  // The same for 32 rows of x and 32 of the matrix at a time.
  // grid: (128 x ceil(R / 32), G, ceil(N / 32)); threadgroup: 128.
  threadgroup float x_tile[32 * PITCH];
  threadgroup float w_tile[32 * PITCH];
  threadgroup uint rows[32];
  const uint group = threadgroup_position_in_grid.y;
  const uint thread_index = thread_position_in_threadgroup.x;
  const uint groups = x_shape[1];
  const uint rank = codes_shape[1];
  const uint width = x_shape[2];
  const uint first = threadgroup_position_in_grid.x * 32;
  const uint first_row = threadgroup_position_in_grid.z * 32;
  const uint valid = min(uint(x_shape[0]) - first_row, 32u);
  const Matrix<S> matrix = matrix_of<S>(
      codes, codes_strides[0], scales, scales_strides[0], biases, biases_strides[0], group);
  if (thread_index < 32) {
    rows[thread_index] = (first_row + thread_index) * groups + group;
  }
  simdgroup_matrix<float, 8, 8> sums[4];
  for (uint i = 0; i < 4; i++) {
    sums[i] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  }
  for (uint block = 0; block < width / 32; block++) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    stage_rows(x, rows, valid, width, block, thread_index, x_tile);
    const uint channel = min(first + thread_index / 4, rank - 1);
    eight_weights<MODE, BITS, GROUP>(
        matrix, width / 32, channel, block, thread_index % 4,
        w_tile + thread_index / 4 * PITCH + thread_index % 4 * 8);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    multiply_quarter(x_tile, w_tile, simdgroup_index_in_threadgroup, sums);
  }
  for (uint i = 0; i < 4; i++) {
    const uint row = simdgroup_index_in_threadgroup / 2 * 16 + i / 2 * 8 + tile_row(thread_index_in_simdgroup);
    const uint channel =
        first + simdgroup_index_in_threadgroup % 2 * 16 + i % 2 * 8 + tile_column(thread_index_in_simdgroup);
    for (uint j = 0; j < 2; j++) {
      if (row < valid && channel + j < rank) {
        out[ulong(rows[row]) * rank + channel + j] = X(sums[i].thread_elements()[j]);
      }
    }
  }
