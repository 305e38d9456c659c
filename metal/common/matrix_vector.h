// COLUMNS rows of a matrix [N, D] of type T times one vector x [D], by a simdgroup; float sums in every lane's
// order: a lane adds its channels, then the lanes are added. D a multiple of 4.
template <typename T, int COLUMNS, int D>
void matrix_vector(
    const device float* x, const device T* matrix, uint first, uint rows, uint lane, thread float* sums) {
  for (int c = 0; c < COLUMNS; ++c) {
    sums[c] = 0.0f;
  }
  for (uint d = 4 * lane; d < D; d += 128) {
    const float a = x[d];
    const float b = x[d + 1];
    const float e = x[d + 2];
    const float f = x[d + 3];
    for (uint c = 0; c < COLUMNS; ++c) {
      if (first + c < rows) {
        const device T* w = matrix + (first + c) * D + d;
        sums[c] += a * float(w[0]) + b * float(w[1]) + e * float(w[2]) + f * float(w[3]);
      }
    }
  }
  for (int c = 0; c < COLUMNS; ++c) {
    sums[c] = simd_sum(sums[c]);
  }
}
