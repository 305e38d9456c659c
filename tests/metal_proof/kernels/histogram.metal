  // Each threadgroup counts its part of x in its own bins, then adds them to the result.
  threadgroup uint bins[256];
  const uint index = thread_index_in_threadgroup;
  for (uint bin = index; bin < 256; bin += threads_per_threadgroup.x) {
    bins[bin] = 0;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const uint count = x_shape[0];
  for (uint i = thread_position_in_grid.x; i < count; i += threads_per_grid.x) {
    count_one(bins, x[i]);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint bin = index; bin < 256; bin += threads_per_threadgroup.x) {
    publish(counts + bin, bins[bin]);
  }
