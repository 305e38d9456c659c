// The two rows that one product made: the queries' latent, normed, and the key/value row, normed, rotated, rounded.
//
// low [R, Q + K] of type T, q_norm [Q], kv_norm [K], table float [rows, W], uniforms = [rows a sequence],
// constants = [eps] -> qr [R, Q], kv [R, K] of type T
// Template: T, Q, K, E channels a lane, W, ROUND, CHANNELS, BLOCK. Grid (64, R): a simdgroup for each of the two.
#include "row.h"

// body: latents
  const uint lane = thread_index_in_simdgroup;
  const uint row = thread_position_in_grid.y;
  const device T* source = low + row * (Q + K);
  if (simdgroup_index_in_threadgroup == 0) {
    float sum = 0.0f;
    for (uint i = lane; i < Q; i += 32) {
      sum += float(source[i]) * float(source[i]);
    }
    const float scale = precise::rsqrt(simd_sum(sum) / float(Q) + constants[0]);
    for (uint i = lane; i < Q; i += 32) {
      qr[row * Q + i] = T(float(source[i]) * scale * float(q_norm[i]));
    }
  } else {
    const bool active = lane * E < K;
    float v[E];
    for (int i = 0; i < E; ++i) {
      v[i] = active ? float(source[Q + lane * E + i]) : 0.0f;
    }
    const float scale = row_scale<E>(v, K, constants[0]);
    if (active) {
      for (int i = 0; i < E; ++i) {
        v[i] *= scale * kv_norm[lane * E + i];
      }
      row_rotate<E>(v, table + (row % uniforms[0]) * W + (W - K) + lane * E);
    }
    row_round<E, K, ROUND, CHANNELS, BLOCK>(v, lane);
    if (active) {
      for (int i = 0; i < E; ++i) {
        kv[row * K + lane * E + i] = T(v[i]);
      }
    }
  }
