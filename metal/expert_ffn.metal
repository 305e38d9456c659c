#include "bank.h"

// The activation between the two products of an expert: silu of the gate, which is cut at `limit` from above,
// times the up value, which is cut on both sides.
inline float swiglu(float gate, float up, float limit) {
  gate = smaller(gate, limit);
  return gate / (1.0f + precise::exp(-gate)) * larger(smaller(up, limit), -limit);
}

// I and D are multiples of 32: no simdgroup and no tile goes beyond them.

// body: gate_up
  // hidden[b, t, a] = swiglu(x[b, t] times expert ids[b, t, a]) * weights[b, t, a]: x [B, T, D], ids [B, T, A],
  // weights float32 -> hidden [B, T, A, I] in x's dtype. The bank holds I gate rows, then I up rows.
  // A simdgroup makes CHANNELS neighbouring values of one (token, expert) pair.
  // grid: (32 x ceil(I / CHANNELS), B x T x A); threadgroup: 64.
  const uint pair = threadgroup_position_in_grid.y;
  const uint inner = codes_shape[1] / 2;
  const uint blocks = x_shape[2] / 32;
  const uint first = thread_position_in_grid.x / 32 * CHANNELS;
  const Matrix<S> matrix = matrix_of<S>(
      codes, codes_strides[0], scales, scales_strides[0], biases, biases_strides[0], uint(ids[pair]));
  const device X* from = x + ulong(pair / ids_shape[2]) * x_shape[2];
  float sums[2 * CHANNELS];  // gates, then up values
  row_products<MODE, BITS, GROUP, CHANNELS, 2>(
      from, matrix, blocks, first, inner, thread_index_in_simdgroup, sums);
  for (uint i = 0; i < CHANNELS; i++) {
    if (thread_index_in_simdgroup == i) {
      const float value = swiglu(sums[i], sums[CHANNELS + i], limit[0]);
      hidden[ulong(pair) * inner + first + i] = X(value * weights[pair]);
    }
  }

// body: down
  // out[b, t] = hidden[b, t, 0] times expert ids[b, t, 0] + ... + start[b, t], in the order of the list:
  // hidden [B, T, A, I], ids [B, T, A], start float32 [B, T, D] -> out float32 [B, T, D].
  // A simdgroup makes CHANNELS neighbouring values of one token.
  // grid: (32 x ceil(D / CHANNELS), B x T); threadgroup: 64.
  const uint token = threadgroup_position_in_grid.y;
  const uint width = codes_shape[1];
  const uint chosen = ids_shape[2];
  const uint inner = hidden_shape[3];
  const uint first = thread_position_in_grid.x / 32 * CHANNELS;
  float sums[CHANNELS];
  for (uint i = 0; i < CHANNELS; i++) {
    sums[i] = 0.0f;
  }
  for (uint a = 0; a < chosen; a++) {
    const uint pair = token * chosen + a;
    const Matrix<S> matrix = matrix_of<S>(
        codes, codes_strides[0], scales, scales_strides[0], biases, biases_strides[0], uint(ids[pair]));
    float part[CHANNELS];
    row_products<MODE, BITS, GROUP, CHANNELS, 1>(
        hidden + ulong(pair) * inner, matrix, inner / 32, first, width, thread_index_in_simdgroup, part);
    for (uint i = 0; i < CHANNELS; i++) {
      sums[i] += part[i];
    }
  }
  for (uint i = 0; i < CHANNELS; i++) {
    if (thread_index_in_simdgroup == i) {
      const ulong at = ulong(token) * width + first + i;
      out[at] = START ? sums[i] + start[at] : sums[i];
    }
  }

// body: order
  // (token, expert) pairs sorted by expert, those of an expert in their own order, and tiles of at most 32 pairs
  // of one expert: ids [P] -> order uint32 [P], tiles uint32 [.., 3] (expert, first and end in order), of which
  // the unused ones are empty.
  // One threadgroup; thread e looks after expert e, e + threads, ...
  threadgroup uint counts[EXPERTS];
  threadgroup uint firsts[EXPERTS];
  threadgroup uint tile_firsts[EXPERTS];
  threadgroup uint used[1];
  const uint pairs = ids_shape[0];
  const uint threads = threads_per_threadgroup.x;
  for (uint e = thread_position_in_threadgroup.x; e < EXPERTS; e += threads) {
    uint count = 0;
    for (uint p = 0; p < pairs; p++) {
      count += uint(ids[p]) == e;
    }
    counts[e] = count;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (thread_position_in_threadgroup.x == 0) {
    uint first = 0, tile = 0;
    for (uint e = 0; e < EXPERTS; e++) {
      firsts[e] = first;
      tile_firsts[e] = tile;
      first += counts[e];
      tile += (counts[e] + 31) / 32;
    }
    used[0] = tile;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint e = thread_position_in_threadgroup.x; e < EXPERTS; e += threads) {
    uint at = firsts[e];
    for (uint p = 0; p < pairs && at < firsts[e] + counts[e]; p++) {
      if (uint(ids[p]) == e) {
        order[at] = p;
        at++;
      }
    }
    for (uint i = 0; i * 32 < counts[e]; i++) {
      const uint tile = tile_firsts[e] + i;
      tiles[tile * 3] = e;
      tiles[tile * 3 + 1] = firsts[e] + i * 32;
      tiles[tile * 3 + 2] = firsts[e] + min(counts[e], (i + 1) * 32);
    }
  }
  for (uint tile = used[0] + thread_position_in_threadgroup.x; tile < uint(tile_count[0]); tile += threads) {
    for (uint i = 0; i < 3; i++) {
      tiles[tile * 3 + i] = 0;
    }
  }

// body: sorted_gate_up
  // As gate_up, with the pairs of an expert together: a threadgroup makes 32 channels of a tile of pairs.
  // x [N, D] and ids [N, A] by rows N, weights [P], P = N x A -> hidden [P, I].
  // grid: (128 x ceil(I / 32), tiles); threadgroup: 128.
  threadgroup float x_tile[32 * PITCH];
  threadgroup float w_tile[2 * 32 * PITCH];
  threadgroup uint rows[32];
  const device uint32_t* tile = tiles + threadgroup_position_in_grid.y * 3;
  const uint valid = tile[2] - tile[1];
  if ((valid == 0) | (tile[0] >= uint(codes_shape[0]))) {  // an empty tile
    return;
  }
  const uint thread_index = thread_position_in_threadgroup.x;
  const uint width = x_shape[1];
  const uint inner = codes_shape[1] / 2;
  const uint blocks = width / 32;
  const uint first = threadgroup_position_in_grid.x * 32;
  const Matrix<S> matrix = matrix_of<S>(
      codes, codes_strides[0], scales, scales_strides[0], biases, biases_strides[0], tile[0]);
  if (thread_index < 32) {
    rows[thread_index] = thread_index < valid ? order[tile[1] + thread_index] / uint(ids_shape[1]) : 0;
  }
  simdgroup_matrix<float, 8, 8> gate[4], up[4];
  for (uint i = 0; i < 4; i++) {
    gate[i] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    up[i] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  }
  for (uint block = 0; block < blocks; block++) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    stage_rows(x, rows, valid, width, block, thread_index, x_tile);
    for (uint part = 0; part < 2; part++) {
      const uint channel = part * inner + first + thread_index / 4;
      eight_weights<MODE, BITS, GROUP>(
          matrix, blocks, channel, block, thread_index % 4,
          w_tile + (part * 32 + thread_index / 4) * PITCH + thread_index % 4 * 8);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    multiply_quarter(x_tile, w_tile, simdgroup_index_in_threadgroup, gate);
    multiply_quarter(x_tile, w_tile + 32 * PITCH, simdgroup_index_in_threadgroup, up);
  }
  for (uint i = 0; i < 4; i++) {
    const uint row = simdgroup_index_in_threadgroup / 2 * 16 + i / 2 * 8 + tile_row(thread_index_in_simdgroup);
    const uint channel =
        first + simdgroup_index_in_threadgroup % 2 * 16 + i % 2 * 8 + tile_column(thread_index_in_simdgroup);
    for (uint j = 0; j < 2; j++) {
      if (row < valid) {
        const uint pair = order[tile[1] + row];
        const float value = swiglu(gate[i].thread_elements()[j], up[i].thread_elements()[j], limit[0]);
        hidden[ulong(pair) * inner + channel + j] = X(value * weights[pair]);
      }
    }
  }

// body: sorted_down
  // hidden [P, I] times its pairs' experts, in tiles -> out float32 [P, D].
  // grid: (128 x ceil(D / 32), tiles); threadgroup: 128.
  threadgroup float x_tile[32 * PITCH];
  threadgroup float w_tile[32 * PITCH];
  threadgroup uint rows[32];
  const device uint32_t* tile = tiles + threadgroup_position_in_grid.y * 3;
  const uint valid = tile[2] - tile[1];
  if ((valid == 0) | (tile[0] >= uint(codes_shape[0]))) {  // an empty tile
    return;
  }
  const uint thread_index = thread_position_in_threadgroup.x;
  const uint inner = hidden_shape[1];
  const uint width = codes_shape[1];
  const uint blocks = inner / 32;
  const uint first = threadgroup_position_in_grid.x * 32;
  const Matrix<S> matrix = matrix_of<S>(
      codes, codes_strides[0], scales, scales_strides[0], biases, biases_strides[0], tile[0]);
  if (thread_index < 32) {
    rows[thread_index] = thread_index < valid ? order[tile[1] + thread_index] : 0;
  }
  simdgroup_matrix<float, 8, 8> sums[4];
  for (uint i = 0; i < 4; i++) {
    sums[i] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  }
  for (uint block = 0; block < blocks; block++) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    stage_rows(hidden, rows, valid, inner, block, thread_index, x_tile);
    const uint channel = first + thread_index / 4;
    eight_weights<MODE, BITS, GROUP>(
        matrix, blocks, channel, block, thread_index % 4,
        w_tile + thread_index / 4 * PITCH + thread_index % 4 * 8);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    multiply_quarter(x_tile, w_tile, simdgroup_index_in_threadgroup, sums);
  }
  for (uint i = 0; i < 4; i++) {
    const uint row = simdgroup_index_in_threadgroup / 2 * 16 + i / 2 * 8 + tile_row(thread_index_in_simdgroup);
    const uint channel =
        first + simdgroup_index_in_threadgroup % 2 * 16 + i % 2 * 8 + tile_column(thread_index_in_simdgroup);
    for (uint j = 0; j < 2; j++) {
      if (row < valid) {
        out[ulong(order[tile[1] + row]) * width + channel + j] = sums[i].thread_elements()[j];
      }
    }
  }

// body: sum
  // out[n] = y[n, 0] + y[n, 1] + ... + start[n], in this order: y float32 [N, A, D] -> [N, D].
  // grid: (D, N), a thread per value.
  const uint width = y_shape[2];
  const uint chosen = y_shape[1];
  const uint row = thread_position_in_grid.y;
  const uint channel = thread_position_in_grid.x;
  float sum = 0.0f;
  for (uint a = 0; a < chosen; a++) {
    sum += y[(ulong(row) * chosen + a) * width + channel];
  }
  const ulong at = ulong(row) * width + channel;
  out[at] = START ? sum + start[at] : sum;
