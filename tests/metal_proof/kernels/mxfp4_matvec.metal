  // y = w x for a weight of [rows, columns / 8] words and [rows, columns / 32] scales: a row per simdgroup,
  // x staged in tiles of CHUNK values that all simdgroups share.
  threadgroup float tile[CHUNK];
  const uint rows = w_shape[0];
  const uint columns = x_shape[0];
  const uint row = threadgroup_position_in_grid.x * simdgroups_per_threadgroup + simdgroup_index_in_threadgroup;
  const device uint32_t* words = w + row * (columns / 8);
  const device uint8_t* scale = scales + row * (columns / 32);

  float sum = 0;
  for (uint start = 0; start < columns; start += CHUNK) {
    const uint count = min(uint(CHUNK), columns - start);
    stage(x + start, tile, thread_position_in_threadgroup.x, threads_per_threadgroup.x, count);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (row < rows) {
      for (uint i = thread_index_in_simdgroup * 8; i < count; i += 32 * 8) {
        const uint column = start + i;
        sum += e8m0(scale[column / 32]) * dot8(words[column / 8], tile + i, e2m1_values);
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  sum = simd_sum(sum);
  if (row < rows && thread_index_in_simdgroup == 0) {
    y[row] = T(sum);
  }
