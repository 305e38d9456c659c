// Whole groups of projected tokens -> a row each: channelwise softmax over the group, norm, rotation, rounding.
//
// source float [B, S, WIDTH], a ring; weight [K]; table float [groups, W]; constants = [eps];
// offset [1]: first token's place; uniforms = [S, rows a sequence, 1 if the first group is only a predecessor]
// -> y [B, rows, K] of type T
// Template: T, K, E channels a lane, W, WIDTH, AT first column, P tokens a group, OVERLAP (a row pools the group
// before by its first K channels too), ROUND, CHANNELS, BLOCK. A threadgroup per row, a thread per channel.
#include "row.h"

struct Pool {
  float top;
  float sum;
  float weighted;
};

// One group of P tokens, from column `column` of values and `column + gap` of gates.
template <int P, int WIDTH>
void pool_group(
    thread Pool& pool, const device float* source, uint place, uint size, uint column, uint gap) {
  float top = pool.top;
  for (uint p = 0; p < P; ++p) {
    top = larger(top, source[((place + p) % size) * WIDTH + column + gap]);
  }
  const float before = precise::exp(pool.top - top);  // 0 where nothing was pooled
  pool.sum *= before;
  pool.weighted *= before;
  pool.top = top;
  for (uint p = 0; p < P; ++p) {
    const uint at = ((place + p) % size) * WIDTH + column;
    const float share = precise::exp(source[at + gap] - top);
    pool.sum += share;
    pool.weighted += share * source[at];
  }
}

// body: compress
  threadgroup float pooled[K];
  const uint channel = thread_position_in_threadgroup.x;
  const uint row = threadgroup_position_in_grid.x;
  const uint size = uniforms[0];
  const uint batch = row / uniforms[1];
  const uint group = row % uniforms[1] + uniforms[2];
  const device float* tokens = source + batch * size * WIDTH;
  if (channel < K) {
    Pool pool;
    pool.top = -INFINITY;
    pool.sum = 0.0f;
    pool.weighted = 0.0f;
    const uint gap = OVERLAP ? 2 * K : K;
    if (OVERLAP && group > 0) {
      pool_group<P, WIDTH>(pool, tokens, offset[0] + (group - 1) * P, size, AT + channel, gap);
    }
    const uint column = AT + (OVERLAP ? K : 0) + channel;
    pool_group<P, WIDTH>(pool, tokens, offset[0] + group * P, size, column, gap);
    pooled[channel] = pool.weighted / pool.sum;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (simdgroup_index_in_threadgroup == 0) {
    const uint lane = thread_index_in_simdgroup;
    const bool active = lane * E < K;
    float v[E];
    for (int i = 0; i < E; ++i) {
      v[i] = active ? pooled[lane * E + i] : 0.0f;
    }
    const float scale = row_scale<E>(v, K, constants[0]);
    if (active) {
      for (int i = 0; i < E; ++i) {
        v[i] *= scale * weight[lane * E + i];
      }
      row_rotate<E>(v, table + (row % uniforms[1]) * W + (W - K) + lane * E);
    }
    row_round<E, K, ROUND, CHANNELS, BLOCK>(v, lane);
    if (active) {
      for (int i = 0; i < E; ++i) {
        y[row * K + lane * E + i] = T(v[i]);
      }
    }
  }
