// Hyper-connection before a sublayer: what is pending mixed in, 24 products of the normed streams, Sinkhorn, the
// streams collapsed to one row, normed. Float32.
#include "float32.h"
#include "hyper.h"

// Doubly normalised C x C matrix, entry l = lane % (C * C) in every lane: softmax of rows + eps, then columns and
// rows in turn, `iterations` column passes, ending on columns.
template <int C>
float sinkhorn(float score, int iterations, float eps) {
  float top = score;
  for (int step = 1; step < C; step *= 2) {
    top = larger(top, simd_shuffle_xor(top, ushort(step)));
  }
  float value = precise::exp(score - top);
  float sum = value;
  for (int step = 1; step < C; step *= 2) {
    sum += simd_shuffle_xor(sum, ushort(step));
  }
  value = value / sum + eps;
  for (int pass = 0; pass < iterations; ++pass) {
    if (pass > 0) {
      sum = value;
      for (int step = 1; step < C; step *= 2) {
        sum += simd_shuffle_xor(sum, ushort(step));
      }
      value = value / (sum + eps);
    }
    sum = value;
    for (int step = C; step < C * C; step *= 2) {
      sum += simd_shuffle_xor(sum, ushort(step));
    }
    value = value / (sum + eps);
  }
  return value;
}

// body: mix
// x [R, C, D], fn [M, C * D]; PENDING: out [R, D], half_post [R, C], comb [R, C, C]; uniforms = [R]
// -> y [R, C, D] the streams with nothing pending, partial [R, M + 1, parts]
// Template: C, D, M, ROWS a threadgroup, PENDING. Grid (64 * parts, ceil(R / ROWS)).
  threadgroup float shared[2][ROWS][M + 1];
  const uint thread_index = thread_position_in_threadgroup.x;
  const uint lane = thread_index_in_simdgroup;
  const uint simdgroup = simdgroup_index_in_threadgroup;
  const uint d = thread_position_in_grid.x;
  const uint first = thread_position_in_grid.y * ROWS;
  const uint rows = min(uint(ROWS), uniforms[0] - first);
  const uint parts = threads_per_grid.x / 64;
  const uint part = threadgroup_position_in_grid.x;
  float stream[ROWS][C];
  for (uint r = 0; r < ROWS; ++r) {
    const uint row = first + r;
    const bool inside = r < rows && d < D;
    float old[C];
    for (uint j = 0; j < C; ++j) {
      old[j] = inside ? x[(row * C + j) * D + d] : 0.0f;
      stream[r][j] = old[j];
    }
    if (PENDING && inside) {
      const float added = float(out[row * D + d]);
      for (uint k = 0; k < C; ++k) {
        float value = 2.0f * half_post[row * C + k] * added;
        for (uint j = 0; j < C; ++j) {
          value += comb[(row * C + j) * C + k] * old[j];
        }
        stream[r][k] = value;
      }
    }
    if (inside) {
      for (uint j = 0; j < C; ++j) {
        y[(row * C + j) * D + d] = stream[r][j];
      }
    }
  }
  for (uint m = 0; m <= M; ++m) {
    float factor[C];
    for (uint j = 0; j < C; ++j) {
      factor[j] = m < M && d < D ? fn[(m * C + j) * D + d] : 0.0f;
    }
    for (uint r = 0; r < ROWS; ++r) {
      float sum = 0.0f;
      for (uint j = 0; j < C; ++j) {
        sum += stream[r][j] * (m < M ? factor[j] : stream[r][j]);
      }
      sum = simd_sum(sum);
      if (lane == 0) {
        shared[simdgroup][r][m] = sum;
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = thread_index; i < rows * (M + 1); i += 64) {
    const uint r = i / (M + 1);
    const uint m = i % (M + 1);
    partial[((first + r) * (M + 1) + m) * parts + part] = shared[0][r][m] + shared[1][r][m];
  }

// body: finish
// x [R, C, D] with nothing pending, partial [R, M + 1, parts], base [M], weight [D], uniforms = [parts],
// constants = [hc_eps, norm_eps] -> normed_f32 [R, D] float, normed [R, D] of type T, half_post [R, C], comb [R, C, C]
// Template: T, C, D, M, PER channels a thread, ITERATIONS. A threadgroup per row.
  threadgroup float sums[M + 1];
  threadgroup float scratch[32];
  const uint thread_index = thread_position_in_threadgroup.x;
  const uint threads = threads_per_threadgroup.x;
  const uint lane = thread_index_in_simdgroup;
  const uint simdgroup = simdgroup_index_in_threadgroup;
  const uint row = threadgroup_position_in_grid.x;
  add_parts<M>(
      partial + row * (M + 1) * uniforms[0], uniforms[0], sums, lane, simdgroup, simdgroups_per_threadgroup);
  const float scale = precise::rsqrt(sums[M] / float(C * D) + constants[1]);
  if (simdgroup == 0) {
    const uint entry = lane % (C * C);
    const float value =
        sinkhorn<C>(sums[2 * C + entry] * scale + base[2 * C + entry], ITERATIONS, constants[0]);
    if (lane < C * C) {
      comb[row * C * C + lane] = value;
    }
    if (lane < C) {
      half_post[row * C + lane] = sigmoid(sums[C + lane] * scale + base[C + lane]);
    }
  }
  float pre[C];
  for (int j = 0; j < C; ++j) {
    pre[j] = sigmoid(sums[j] * scale + base[j]) + constants[0];
  }
  float u[PER];
  const float squares = add_threads(
      collapse<C, D, PER>(x + row * C * D, pre, thread_index, threads, u),
      scratch, lane, simdgroup, simdgroups_per_threadgroup);
  const float norm = precise::rsqrt(squares / float(D) + constants[1]);
  for (int i = 0; i < PER; ++i) {
    const uint d = uint(i) * threads + thread_index;
    if (d < D) {
      const float value = u[i] * norm * float(weight[d]);
      normed_f32[row * D + d] = value;
      normed[row * D + d] = T(value);
    }
  }
