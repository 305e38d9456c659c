// Experts of a token and their weights: p = sqrt(softplus(logits)), choice by p + bias, weights scale * p / sum p.
//
// logits float [R, N], bias float [N] (HASHED: unused), given [R, A] (HASHED: the ids; else unused),
// constants = [scale] -> ids uint [R, A] (HASHED: none is written), weights float [R, A]
// A tie goes to the smaller id, a NaN is below everything.
// Template: N experts, A chosen. Grid (32, R): a simdgroup per row.
#include "float32.h"

inline float route_score(float logit) {
  return precise::sqrt(larger(logit, 0.0f) + log_1_plus(precise::exp(-fabs(logit))));
}

// Lane a holds the a-th chosen expert's score; the sum is in the order of choice, so a row's own.
inline float route_sum(float chosen, uint lane, int count) {
  float sum = 0.0f;
  for (int a = 0; a < count; ++a) {
    sum += simd_shuffle(chosen, ushort(a));
  }
  return sum;
}

// body: route
  const uint lane = thread_index_in_simdgroup;
  const uint row = thread_position_in_grid.y;
  const int HELD = (N + 31) / 32;
  float score[HELD];
  uint key[HELD];  // 0: no expert, or one already chosen
  for (int i = 0; i < HELD; ++i) {
    const uint expert = uint(i) * 32 + lane;
    score[i] = expert < N ? route_score(logits[row * N + expert]) : 0.0f;
    key[i] = expert < N ? max(order_of(score[i] + bias[expert]), 1u) : 0u;
  }
  float mine = 0.0f;
  uint id = 0;
  for (uint a = 0; a < A; ++a) {
    uint top = 0;
    for (int i = 0; i < HELD; ++i) {
      top = max(top, key[i]);
    }
    top = simd_max(top);
    uint best = 0xFFFFFFFFu;
    for (int i = HELD - 1; i >= 0; --i) {
      best = key[i] == top ? uint(i) * 32 + lane : best;
    }
    best = simd_min(best);
    float found = 0.0f;
    for (int i = 0; i < HELD; ++i) {
      if (uint(i) * 32 + lane == best) {
        key[i] = 0;
        found = score[i];
      }
    }
    found = simd_shuffle(found, ushort(best % 32));
    if (lane == a) {
      mine = found;
      id = best;
    }
  }
  const float sum = route_sum(mine, lane, A);
  if (lane < A) {
    ids[row * A + lane] = id;
    weights[row * A + lane] = mine * (constants[0] / sum);
  }

// body: hashed
  const uint lane = thread_index_in_simdgroup;
  const uint row = thread_position_in_grid.y;
  float mine = 0.0f;
  if (lane < A) {
    mine = route_score(logits[row * N + uint(given[row * A + lane])]);
  }
  const float sum = route_sum(mine, lane, A);
  if (lane < A) {
    weights[row * A + lane] = mine * (constants[0] / sum);
  }
