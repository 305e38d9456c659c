// A sublayer's output back into the C streams: y[k] = post[k] * out + sum_j comb[j][k] * x[j]. Float32.
//
// x [R, C, D], out [R, D] float or bfloat, half_post [R, C], comb [R, C, C] -> y [R, C, D]
// Template: C streams, D width, T type of out. Grid (D, R): a thread makes the C values of one channel.

// body: hc_post
  const uint d = thread_position_in_grid.x;
  const uint row = thread_position_in_grid.y;
  float stream[C];
  for (int j = 0; j < C; ++j) {
    stream[j] = x[(row * C + j) * D + d];
  }
  const float added = float(out[row * D + d]);
  for (int k = 0; k < C; ++k) {
    float value = 2.0f * half_post[row * C + k] * added;
    for (int j = 0; j < C; ++j) {
      value += comb[(row * C + j) * C + k] * stream[j];
    }
    y[(row * C + k) * D + d] = value;
  }
