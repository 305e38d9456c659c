// The streams collapsed to the row that the vocabulary projection reads. The first launch is `mix` of hc_pre.
//
// x [R, C, D], partial [R, C + 1, parts], base [C], weight [D], uniforms = [parts], constants = [hc_eps, norm_eps]
// -> y [R, D] float. Template: C, D, PER channels a thread. A threadgroup per row.
#include "float32.h"
#include "hyper.h"

// body: hc_head
  threadgroup float sums[C + 1];
  threadgroup float scratch[32];
  const uint thread_index = thread_position_in_threadgroup.x;
  const uint threads = threads_per_threadgroup.x;
  const uint lane = thread_index_in_simdgroup;
  const uint simdgroup = simdgroup_index_in_threadgroup;
  const uint row = threadgroup_position_in_grid.x;
  add_parts<C>(
      partial + row * (C + 1) * uniforms[0], uniforms[0], sums, lane, simdgroup, simdgroups_per_threadgroup);
  const float scale = precise::rsqrt(sums[C] / float(C * D) + constants[1]);
  float pre[C];
  for (int j = 0; j < C; ++j) {
    pre[j] = sigmoid(sums[j] * scale + base[j]) + constants[0];
  }
  float u[PER];
  const float squares = add_threads(
      collapse<C, D, PER>(x + row * C * D, pre, thread_index, threads, u),
      scratch, lane, simdgroup, simdgroups_per_threadgroup);
  const float norm = precise::rsqrt(squares / float(D) + constants[1]);
  for (int i = 0; i < PER; ++i) {
    const uint d = uint(i) * threads + thread_index;
    if (d < D) {
      y[row * D + d] = u[i] * norm * weight[d];
    }
  }
