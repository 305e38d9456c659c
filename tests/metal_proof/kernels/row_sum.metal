  // One threadgroup per row of x.
  threadgroup float partial[32];
  const uint row = threadgroup_position_in_grid.x;
  const uint columns = x_shape[1];
  const device T* values = x + row * columns;

  float sum = 0;
  for (uint i = thread_position_in_threadgroup.x; i < columns; i += threads_per_threadgroup.x) {
    sum += float(values[i]);
  }
  sum = threadgroup_sum(
      sum, partial, thread_index_in_simdgroup, simdgroup_index_in_threadgroup, simdgroups_per_threadgroup);
  if (thread_position_in_threadgroup.x == 0) {
    y[row] = T(sum);
  }
