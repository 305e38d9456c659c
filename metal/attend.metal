#include "tile.h"

// Of so many rows: 128 in each, as long as there are threadgroups for it.
inline uint splits_of(uint count) { return (count + 127) / 128; }

// body: attend
  // Attention of all heads over one key/value head: window rows, then compressed rows, one softmax, a sink.
  //
  // q [B, T, H, K], scaled; window [B, S, K]; compressed [B, N, K]; indices [B, T, J] uint32; masks float32,
  // added to the scores; sinks [H] float32; table float32 [T, >= K] (cosine, sine of each channel pair; the last K).
  // window_count[0] <= S and compressed_count[0] <= N (or J): rows that are there. Those after them change neither
  // time nor bits, for splits follow the count; splits that it leaves without rows write nothing.
  // out [B, T, H, K], normalised and rotated (DIRECT), or float32 [splits, B, T, H, K], neither;
  // stats float32 [splits, B, T, H, 2]: peak, and sum without the sink.
  //
  // A threadgroup takes HEAD_TILES x 8 heads of one token over the rows of one split. Its simdgroups are one or two
  // STREAMS of rows times SLICES of channels. A row's channels are loaded once, as a simdgroup matrix that serves
  // as key (rows x channels, times q) and as value (heads x rows times it). Because a sum over channels has no
  // order, a lane takes neighbouring channels for its places in the matrices of its slice.
  //
  // grid: (splits x threads, ceil(H / 8 / HEAD_TILES), B x T); threadgroup: 32 x SLICES x STREAMS.
  // Everything is float32 after a row is loaded. The peak starts at the sink, so it is finite unless a NaN is there.
  // As in MLX's own attention exp is fast: what it is off by grows with the distance from the peak, the share falls.
  constexpr int DIMS = K / SLICES;   // channels of a simdgroup
  constexpr int CHUNKS = DIMS / 8;   // its matrices
  constexpr int EACH = 2 * CHUNKS;   // channels of a lane
  threadgroup float scratch[2 * STREAMS * SLICES * HEAD_TILES * 64];
  threadgroup float peaks[STREAMS * HEAD_TILES * 16];
  threadgroup float joined[STREAMS == 2 ? HEAD_TILES * 8 * K : 1];

  const uint heads = q_shape[2];
  const uint token = threadgroup_position_in_grid.z;
  const uint batch = token / q_shape[1];
  const uint window_rows = window_count[0];
  const uint compressed_rows = COMPRESSED == 0 ? 0 : compressed_count[0];
  const uint count = window_rows + compressed_rows;
  const uint splits = DIRECT ? 1 : min(threadgroups_per_grid.x, splits_of(count));
  if (threadgroup_position_in_grid.x >= splits) {
    return;
  }
  const uint strides = (count + 8 * STREAMS - 1) / (8 * STREAMS);
  const uint steps = (strides + splits - 1) / splits;
  const uint begin = threadgroup_position_in_grid.x * steps * 8 * STREAMS;

  const uint stream = simdgroup_index_in_threadgroup / SLICES;
  const uint slice = simdgroup_index_in_threadgroup % SLICES;
  const uint row = tile_row(thread_index_in_simdgroup);
  const uint column = tile_column(thread_index_in_simdgroup);
  const uint channel = slice * DIMS + column / 2 * EACH;
  const uint first_head = threadgroup_position_in_grid.y * HEAD_TILES * 8;

  simdgroup_matrix<float, 8, 8> query[HEAD_TILES][CHUNKS];  // channels x heads
  simdgroup_matrix<float, 8, 8> sums[HEAD_TILES][CHUNKS];   // heads x channels
  float peak[HEAD_TILES], total[HEAD_TILES];                // of head `row` of the tile
  for (int tile = 0; tile < HEAD_TILES; tile++) {
    const uint head = first_head + tile * 8;
    for (int i = 0; i < CHUNKS; i++) {
      const uint at = slice * DIMS + row / 2 * EACH + 2 * i + row % 2;
      for (int j = 0; j < 2; j++) {
        const uint h = head + column + j;
        query[tile][i].thread_elements()[j] = h < heads ? float(q[(token * heads + h) * K + at]) : 0.0f;
      }
      sums[tile][i] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    }
    peak[tile] = head + row < heads ? larger(sinks[head + row], -FLT_MAX) : 0.0f;
    total[tile] = 0.0f;
  }

  uint pass = 0;
  for (uint step = 0; step < steps; step++) {
    const uint first = begin + (step * STREAMS + stream) * 8;
    float added[2];  // the mask of rows `first + column` and the next
    for (uint j = 0; j < 2; j++) {
      const uint at = first + column + j;
      added[j] = at < count ? 0.0f : -INFINITY;
      if (WINDOW_MASKED && at < window_rows) {
        added[j] = window_mask[(token % q_shape[1]) * window_shape[1] + at];
      }
      if (COMPRESSED_MASKED && at >= window_rows && at < count) {
        const uint places = COMPRESSED == 2 ? indices_shape[2] : compressed_shape[1];
        added[j] = compressed_mask[(COMPRESSED == 2 ? token : token % q_shape[1]) * places + at - window_rows];
      }
    }
    // Of many tokens most see few of the rows of the chunk. All simdgroups come to the same answer.
    if (STREAMS == 1 && simd_all(added[0] == -INFINITY && added[1] == -INFINITY)) {
      continue;
    }
    simdgroup_matrix<float, 8, 8> rows[CHUNKS];  // rows x channels
    const uint n = first + row;
    if (n < count) {
      const device T* from = window + (batch * window_rows + n) * K;
      if (COMPRESSED == 1 && n >= window_rows) {
        from = compressed + (ulong(batch) * compressed_shape[1] + n - window_rows) * K;
      } else if (COMPRESSED == 2 && n >= window_rows) {
        const uint index = uint(indices[token * indices_shape[2] + n - window_rows]);
        from = compressed + (ulong(batch) * compressed_shape[1] + index) * K;
      }
      for (int i = 0; i < CHUNKS; i += 2) {
        const vec<T, 4> four = *(const device vec<T, 4>*)(from + channel + 2 * i);
        rows[i].thread_elements()[0] = float(four[0]);
        rows[i].thread_elements()[1] = float(four[1]);
        rows[i + 1].thread_elements()[0] = float(four[2]);
        rows[i + 1].thread_elements()[1] = float(four[3]);
      }
    } else {
      for (int i = 0; i < CHUNKS; i++) {
        rows[i].thread_elements()[0] = 0.0f;
        rows[i].thread_elements()[1] = 0.0f;
      }
    }

    // Scores of this slice of channels, to be added over the slices. Two scratch tiles by turns: one barrier a step.
    threadgroup float* mine = scratch + ((pass % 2 * STREAMS + stream) * SLICES) * HEAD_TILES * 64;
    pass++;
    for (int tile = 0; tile < HEAD_TILES; tile++) {
      simdgroup_matrix<float, 8, 8> part = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
      for (int i = 0; i < CHUNKS; i++) {
        simdgroup_multiply_accumulate(part, rows[i], query[tile][i], part);
      }
      for (int j = 0; j < 2; j++) {
        mine[(slice * HEAD_TILES + tile) * 64 + row * 8 + column + j] = part.thread_elements()[j];
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    for (int tile = 0; tile < HEAD_TILES; tile++) {
      float score[2];  // of head `row` and rows `column`, `column + 1`
      for (uint j = 0; j < 2; j++) {
        score[j] = added[j];
        for (int part = 0; part < SLICES; part++) {
          score[j] += mine[(part * HEAD_TILES + tile) * 64 + (column + j) * 8 + row];
        }
      }
      const float highest = larger(peak[tile], across_row_max(larger(score[0], score[1])));
      const float shrink = fast::exp(peak[tile] - highest);
      simdgroup_matrix<float, 8, 8> share;  // heads x rows
      for (int j = 0; j < 2; j++) {
        score[j] = fast::exp(score[j] - highest);
        share.thread_elements()[j] = score[j];
      }
      peak[tile] = highest;
      total[tile] = total[tile] * shrink + across_row_sum(score[0] + score[1]);
      for (int i = 0; i < CHUNKS; i++) {
        sums[tile][i].thread_elements()[0] *= shrink;
        sums[tile][i].thread_elements()[1] *= shrink;
        simdgroup_multiply_accumulate(sums[tile][i], share, rows[i], sums[tile][i]);
      }
    }
  }

  if (STREAMS == 2) {
    for (int tile = 0; tile < HEAD_TILES; tile++) {
      if (slice == 0 && column == 0) {
        peaks[(stream * HEAD_TILES + tile) * 16 + row] = peak[tile];
        peaks[(stream * HEAD_TILES + tile) * 16 + 8 + row] = total[tile];
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (int tile = 0; tile < HEAD_TILES; tile++) {
      float highest = peak[tile];
      for (int other = 0; other < STREAMS; other++) {
        highest = larger(highest, peaks[(other * HEAD_TILES + tile) * 16 + row]);
      }
      float sum = 0.0f;
      for (int other = 0; other < STREAMS; other++) {
        const threadgroup float* from = peaks + (other * HEAD_TILES + tile) * 16 + row;
        sum += from[8] * fast::exp(from[0] - highest);
      }
      const float shrink = fast::exp(peak[tile] - highest);
      for (int i = 0; i < CHUNKS; i++) {
        sums[tile][i].thread_elements()[0] *= shrink;
        sums[tile][i].thread_elements()[1] *= shrink;
      }
      peak[tile] = highest;
      total[tile] = sum;
    }
    if (stream == 1) {
      for (int tile = 0; tile < HEAD_TILES; tile++) {
        for (int i = 0; i < CHUNKS; i++) {
          for (int j = 0; j < 2; j++) {
            joined[(tile * 8 + row) * K + channel + 2 * i + j] = sums[tile][i].thread_elements()[j];
          }
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (stream == 0) {
      for (int tile = 0; tile < HEAD_TILES; tile++) {
        for (int i = 0; i < CHUNKS; i++) {
          for (int j = 0; j < 2; j++) {
            sums[tile][i].thread_elements()[j] += joined[(tile * 8 + row) * K + channel + 2 * i + j];
          }
        }
      }
    }
  }

  if (stream == 0) {
    for (int tile = 0; tile < HEAD_TILES; tile++) {
      const uint head = first_head + tile * 8 + row;
      if (head >= heads) {
        continue;
      }
      const uint place = (threadgroup_position_in_grid.x * threadgroups_per_grid.z + token) * heads + head;
      const float whole = DIRECT ? 1.0f / (total[tile] + fast::exp(sinks[head] - peak[tile])) : 1.0f;
      for (int i = 0; i < CHUNKS; i++) {
        const uint at = channel + 2 * i;
        float a = sums[tile][i].thread_elements()[0] * whole;
        float b = sums[tile][i].thread_elements()[1] * whole;
        if (DIRECT) {
          const device float* angle = table + (token % q_shape[1] + 1) * table_shape[1] - K + at;
          const float rotated = a * angle[0] - b * angle[1];
          b = a * angle[1] + b * angle[0];
          a = rotated;
        }
        out[ulong(place) * K + at] = O(a);
        out[ulong(place) * K + at + 1] = O(b);
      }
      if (slice == 0 && column == 0) {
        stats[place * 2] = peak[tile];
        stats[place * 2 + 1] = total[tile];
      }
    }
  }

// body: join
  // Splits of an attention into one: sums float32 [splits, B, T, H, K] and stats [splits, B, T, H, 2] (peak, sum)
  // as `attend` leaves them -> out [B, T, H, K], normalised with the sink and rotated by table float32 [T, >= K].
  // Counts as `attend` has them: only splits that have rows are read.
  // grid: (K / 2, H, B x T), a thread per channel pair.
  const uint heads = threads_per_grid.y;
  const uint width = threads_per_grid.x * 2;
  const uint tokens = threads_per_grid.z;
  const uint head = thread_position_in_grid.y;
  const uint token = thread_position_in_grid.z;
  const uint channel = thread_position_in_grid.x * 2;
  const uint splits = min(uint(sums_shape[0]), splits_of(window_count[0] + compressed_count[0]));

  float peak = -FLT_MAX;
  for (uint split = 0; split < splits; split++) {
    peak = larger(peak, stats[((split * tokens + token) * heads + head) * 2]);
  }
  float total = fast::exp(sinks[head] - peak);
  float a = 0.0f, b = 0.0f;
  for (uint split = 0; split < splits; split++) {
    const uint place = (split * tokens + token) * heads + head;
    const float share = fast::exp(stats[place * 2] - peak);
    total += stats[place * 2 + 1] * share;
    const float2 pair = *(const device float2*)(sums + ulong(place) * width + channel);
    a += pair.x * share;
    b += pair.y * share;
  }
  a /= total;
  b /= total;
  const device float* angle = table + (token % table_shape[0] + 1) * table_shape[1] - width + channel;
  out[(token * heads + head) * width + channel] = O(a * angle[0] - b * angle[1]);
  out[(token * heads + head) * width + channel + 1] = O(a * angle[1] + b * angle[0]);
