// Copies a TILE x TILE piece of a matrix, with zeros beyond its edge.
template <typename T, int TILE>
void load_tile(
    const device T* from,
    threadgroup T* to,
    uint row,
    uint column,
    uint rows,
    uint columns,
    uint thread_index,
    uint threads) {
  for (uint i = thread_index; i < TILE * TILE; i += threads) {
    const uint r = row + i / TILE;
    const uint c = column + i % TILE;
    to[i] = r < rows && c < columns ? from[r * columns + c] : T(0);
  }
}
