// Queries of all heads: norm without a weight and scale K^-0.5 (NORM), rotation, simulated rounding.
//
// q [R, H * K] of type T, table float [rows, W] (cosine, sine by turns; the last K columns are a head's),
// uniforms = [rows a sequence], constants = [eps] -> y [R, H, K] float
// Template: T, H, K, E channels a lane, W, NORM, ROUND, CHANNELS, BLOCK. Grid (32, H, R): a simdgroup a head.
#include "row.h"

// body: query_heads
  const uint lane = thread_position_in_grid.x;
  const uint row = thread_position_in_grid.z;
  const uint first = (row * H + thread_position_in_grid.y) * K + lane * E;
  const bool active = lane * E < K;
  float v[E];
  for (int i = 0; i < E; ++i) {
    v[i] = active ? float(q[first + i]) : 0.0f;
  }
  if (NORM) {
    const float scale = row_scale<E>(v, K, constants[0]) * precise::rsqrt(float(K));
    for (int i = 0; i < E; ++i) {
      v[i] *= scale;
    }
  }
  if (active) {
    row_rotate<E>(v, table + (row % uniforms[0]) * W + (W - K) + lane * E);
  }
  row_round<E, K, ROUND, CHANNELS, BLOCK>(v, lane);
  if (active) {
    for (int i = 0; i < E; ++i) {
      y[first + i] = v[i];
    }
  }
