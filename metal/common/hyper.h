// Hyper-connections in two launches. `mix`: a threadgroup of 64 threads takes 64 channels of ROWS rows, mixes in
// what is pending, and leaves its part of M products with `fn` and of the sum of squares. The second launch adds
// the parts of a row, a simdgroup per number.

// partial [R, M + 1, parts]; entry M is the sum of squares. Returned to every thread through `sums` [M + 1].
template <int M>
void add_parts(
    const device float* partial, uint parts, threadgroup float* sums, uint lane, uint simdgroup, uint simdgroups) {
  for (uint m = simdgroup; m <= M; m += simdgroups) {
    float sum = 0.0f;
    for (uint i = lane; i < parts; i += 32) {
      sum += partial[m * parts + i];
    }
    sum = simd_sum(sum);
    if (lane == 0) {
      sums[m] = sum;
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

// The sum of one value per thread, over the threadgroup.
inline float add_threads(float value, threadgroup float* scratch, uint lane, uint simdgroup, uint simdgroups) {
  value = simd_sum(value);
  if (lane == 0) {
    scratch[simdgroup] = value;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return simd_sum(lane < simdgroups ? scratch[lane] : 0.0f);
}

// u = sum_j pre[j] * x[j] of the channels that are this thread's; returns their sum of squares.
template <int C, int D, int PER>
float collapse(
    const device float* x, thread const float* pre, uint thread_index, uint threads, thread float* u) {
  float squares = 0.0f;
  for (int i = 0; i < PER; ++i) {
    const uint d = uint(i) * threads + thread_index;
    u[i] = 0.0f;
    if (d < D) {
      for (int j = 0; j < C; ++j) {
        u[i] += pre[j] * x[j * D + d];
      }
    }
    squares += u[i] * u[i];
  }
  return squares;
}
