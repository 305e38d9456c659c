  // c = a b; four simdgroups make a 16 x 16 tile of c, each one quarter of it.
  constexpr int TILE = 16;
  threadgroup T a_tile[TILE * TILE], b_tile[TILE * TILE];
  threadgroup float c_tile[TILE * TILE];
  const uint rows = a_shape[0];
  const uint inner = a_shape[1];
  const uint columns = b_shape[1];
  const uint row = threadgroup_position_in_grid.y * TILE;
  const uint column = threadgroup_position_in_grid.x * TILE;
  const uint index = thread_index_in_threadgroup;
  const uint quarter_row = simdgroup_index_in_threadgroup / 2 * 8;
  const uint quarter_column = simdgroup_index_in_threadgroup % 2 * 8;

  simdgroup_matrix<float, 8, 8> sum = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  for (uint k = 0; k < inner; k += TILE) {
    load_tile<T, TILE>(a, a_tile, row, k, rows, inner, index, 128);
    load_tile<T, TILE>(b, b_tile, k, column, inner, columns, index, 128);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint part = 0; part < TILE; part += 8) {
      simdgroup_matrix<T, 8, 8> left, right;
      simdgroup_load(left, a_tile + quarter_row * TILE + part, TILE);
      simdgroup_load(right, b_tile + part * TILE + quarter_column, TILE);
      simdgroup_multiply_accumulate(sum, left, right, sum);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }

  // By way of threadgroup memory, because a tile at the edge is stored only in part.
  threadgroup float* quarter = c_tile + quarter_row * TILE + quarter_column;
  simdgroup_store(sum, quarter, TILE);
  simdgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = thread_index_in_simdgroup; i < 64; i += 32) {
    const uint r = row + quarter_row + i / 8;
    const uint col = column + quarter_column + i % 8;
    if (r < rows && col < columns) {
      c[r * columns + col] = T(quarter[i / 8 * TILE + i % 8]);
    }
  }
