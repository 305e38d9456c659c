// A product that must be float32, of a weight read as it is stored: y = x * weight^T (+ a bias that goes round).
//
// x float [R, D], weight [N, D] of type T, bias float [P, N], uniforms = [rows a sequence, P], phase [1] -> y float [R, N]
// Template: T, N, D, COLUMNS a simdgroup, BIAS. Grid (32 * ceil(N / COLUMNS), R).
#include "matrix_vector.h"

// body: project
  const uint lane = thread_index_in_simdgroup;
  const uint first = thread_position_in_grid.x / 32 * COLUMNS;
  const uint row = thread_position_in_grid.y;
  float sums[COLUMNS];
  matrix_vector<T, COLUMNS, D>(x + row * D, weight, first, N, lane, sums);
  if (lane == 0) {
    for (uint c = 0; c < COLUMNS; ++c) {
      if (first + c < N) {
        float value = sums[c];
        if (BIAS) {
          value += bias[(phase[0] + row % uniforms[0]) % uniforms[1] * N + first + c];
        }
        y[row * N + first + c] = value;
      }
    }
  }
