  // One threadgroup per row of x; the row is read twice, never stored.
  threadgroup float scratch[32];
  const uint columns = x_shape[1];
  const device T* row = x + threadgroup_position_in_grid.x * columns;
  device T* result = y + threadgroup_position_in_grid.x * columns;
  const uint first = thread_position_in_threadgroup.x;
  const uint step = threads_per_threadgroup.x;
  const uint lane = thread_index_in_simdgroup;
  const uint simdgroup = simdgroup_index_in_threadgroup;

  const float top = reduce<Maximum>(
      largest(row, first, step, columns), scratch, lane, simdgroup, simdgroups_per_threadgroup);
  float sum = 0;
  for (uint i = first; i < columns; i += step) {
    sum += exp(float(row[i]) - top);
  }
  sum = reduce<Sum>(sum, scratch, lane, simdgroup, simdgroups_per_threadgroup);
  for (uint i = first; i < columns; i += step) {
    result[i] = T(exp(float(row[i]) - top) / sum);
  }
