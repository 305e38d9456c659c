#include "tile.h"

// body: scores
  // scores[b, t, n] = sum_h weights[b, t, h] * relu(q[b, t, h] . keys[b, n]) + mask[t, n], all float32:
  // q float32 [B, T, H, K], weights float32 [B, T, H], keys [B, N, K], mask float32 [T, N]
  // -> scores float32 [B, T, N], of the first filled[0] keys only: the others are room.
  // A threadgroup's SIMDGROUPS share the heads, TILES x 8 each, which they keep as simdgroup matrices, and go
  // together over 32 keys at a time, of which a lane holds neighbouring channels of one. Keys that the mask
  // hides are not read.
  // grid: (threads x groups, B x T), as many groups as keep the device busy; threadgroup: 32 x SIMDGROUPS.
  constexpr int CHUNKS = K / 8;
  constexpr int EACH = 2 * CHUNKS;
  threadgroup float scratch[2 * SIMDGROUPS * 32];
  const uint heads = q_shape[2];
  const uint count = filled[0];
  const uint room = keys_shape[1];
  const uint token = threadgroup_position_in_grid.y;
  const uint batch = token / q_shape[1];
  const uint row = tile_row(thread_index_in_simdgroup);
  const uint column = tile_column(thread_index_in_simdgroup);
  const uint channel = column / 2 * EACH;

  simdgroup_matrix<float, 8, 8> query[TILES][CHUNKS];  // channels x heads
  float share[TILES][2];
  for (uint tile = 0; tile < TILES; tile++) {
    const uint head = (simdgroup_index_in_threadgroup * TILES + tile) * 8 + column;
    for (uint j = 0; j < 2; j++) {
      share[tile][j] = weights[token * heads + head + j];
      for (uint i = 0; i < CHUNKS; i++) {
        const uint at = row / 2 * EACH + 2 * i + row % 2;
        query[tile][i].thread_elements()[j] = q[(token * heads + head + j) * K + at];
      }
    }
  }

  const uint steps = (count + 31) / 32;
  uint pass = 0;
  for (uint step = threadgroup_position_in_grid.x; step < steps; step += threadgroups_per_grid.x) {
    threadgroup float* mine = scratch + (pass % 2) * SIMDGROUPS * 32;
    for (uint part = 0; part < 32; part += 8) {
      const uint n = step * 32 + part + row;
      const bool seen = n < count && !(MASKED && mask[(token % q_shape[1]) * room + n] == -INFINITY);
      simdgroup_matrix<float, 8, 8> rows[CHUNKS];  // keys x channels
      for (uint i = 0; i < CHUNKS; i += 2) {
        vec<T, 4> four = vec<T, 4>(T(0));
        if (seen) {
          four = *(const device vec<T, 4>*)(keys + (ulong(batch) * room + n) * K + channel + 2 * i);
        }
        rows[i].thread_elements()[0] = float(four[0]);
        rows[i].thread_elements()[1] = float(four[1]);
        rows[i + 1].thread_elements()[0] = float(four[2]);
        rows[i + 1].thread_elements()[1] = float(four[3]);
      }
      float sum = 0.0f;
      for (uint tile = 0; tile < TILES; tile++) {
        simdgroup_matrix<float, 8, 8> products = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
        for (uint i = 0; i < CHUNKS; i++) {
          simdgroup_multiply_accumulate(products, rows[i], query[tile][i], products);
        }
        sum += larger(products.thread_elements()[0], 0.0f) * share[tile][0];
        sum += larger(products.thread_elements()[1], 0.0f) * share[tile][1];
      }
      sum = across_row_sum(sum);
      if (column == 0) {
        mine[simdgroup_index_in_threadgroup * 32 + part + row] = sum;
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const uint n = step * 32 + thread_position_in_threadgroup.x;
    if (thread_position_in_threadgroup.x < 32 && n < count) {
      float sum = 0.0f;
      for (uint i = 0; i < SIMDGROUPS; i++) {
        sum += mine[i * 32 + thread_position_in_threadgroup.x];
      }
      scores[ulong(token) * room + n] = MASKED ? sum + mask[(token % q_shape[1]) * room + n] : sum;
    }
    pass++;
  }

// body: best
  // The wanted[0] = k largest of the first filled[0] >= k of every row of scores float32 [R, N]
  // -> indices uint32 [R, k], ascending.
  // Equal scores: the smaller index goes first.
  // A threadgroup for each row finds the k-th score by its bits, eleven at a time from the top, counting in
  // how many scores each value of them occurs; then it writes what lies above, and of its equals the first.
  // grid: (threads, R); threadgroup: any multiple of 32 up to 1024.
  constexpr uint BINS = 2048;
  threadgroup uint bins[BINS];
  threadgroup uint scratch[2 * 32];
  threadgroup uint found[2];  // the bits found so far; how many of the scores with these bits are wanted
  const uint row = threadgroup_position_in_grid.y;
  const uint total = filled[0];
  const uint room = scores_shape[1];
  const uint threads = threads_per_threadgroup.x;
  const uint index = thread_position_in_threadgroup.x;
  const uint simdgroups = simdgroups_per_threadgroup;
  const uint each = BINS / threads;

  uint prefix = 0;
  uint left = wanted[0];  // of the scores with these bits
  for (uint level = 0; level < 3; level++) {
    const uint shift = level == 0 ? 21 : level == 1 ? 10 : 0;
    const uint known = level == 0 ? 32 : level == 1 ? 21 : 10;  // bits below the ones found
    const uint values = level == 2 ? 1024 : 2048;
    for (uint i = index; i < BINS; i += threads) {
      bins[i] = 0;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint n = index; n < total; n += threads) {
      const uint key = order_of(scores[ulong(row) * room + n]);
      if (level == 0 || key >> known == prefix) {
        threadgroup atomic_uint* bin = (threadgroup atomic_uint*)(bins + (key >> shift & (values - 1)));
        atomic_fetch_add_explicit(bin, 1, memory_order_relaxed);
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    // Bins from the top: this thread's, those before them, and whether the wanted score is among its own.
    uint own = 0;
    for (uint i = 0; i < each; i++) {
      own += bins[BINS - 1 - (index * each + i)];
    }
    uint before = simd_prefix_exclusive_sum(own);
    if (thread_index_in_simdgroup == 31) {
      scratch[simdgroup_index_in_threadgroup] = before + own;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = 0; i < simdgroup_index_in_threadgroup; i++) {
      before += scratch[i];
    }
    if (before < left && left <= before + own) {
      uint bin = BINS - 1 - index * each;
      while (before + bins[bin] < left) {
        before += bins[bin];
        bin--;
      }
      found[0] = prefix << (known - shift) | bin;
      found[1] = left - before;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    prefix = found[0];
    left = found[1];
  }

  // Four neighbouring scores a thread; places beyond the last one come below and after all. In one number: scores
  // above (low half), equal ones (high half).
  uint above = 0, equal = 0;  // in earlier rounds
  uint pass = 0;
  for (uint start = 0; start < total; start += threads * 4) {
    uint key[4];
    uint own = 0;
    for (uint j = 0; j < 4; j++) {
      const uint n = start + index * 4 + j;
      key[j] = n < total ? order_of(scores[ulong(row) * room + n]) : 0;
      own += n >= total ? 0 : key[j] > prefix ? 1 : key[j] == prefix ? 1 << 16 : 0;
    }
    uint before = simd_prefix_exclusive_sum(own);
    threadgroup uint* sums = scratch + pass % 2 * 32;
    if (thread_index_in_simdgroup == 31) {
      sums[simdgroup_index_in_threadgroup] = before + own;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    uint all = 0;
    for (uint i = 0; i < simdgroups; i++) {
      before += i < simdgroup_index_in_threadgroup ? sums[i] : 0;
      all += sums[i];
    }
    uint higher = above + (before & 0xFFFF);
    uint same = equal + (before >> 16);
    for (uint j = 0; j < 4; j++) {
      const uint n = start + index * 4 + j;
      if (key[j] > prefix) {
        indices[row * wanted[0] + higher + min(same, left)] = n;
        higher++;
      } else if (key[j] == prefix) {
        if (same < left) {
          indices[row * wanted[0] + higher + same] = n;
        }
        same++;
      }
    }
    above += all & 0xFFFF;
    equal += all >> 16;
    pass++;
  }
