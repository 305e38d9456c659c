// The sum over a threadgroup of one value per thread, in every thread of simdgroup 0.
inline float threadgroup_sum(
    float value,
    threadgroup float* partial,
    uint lane,
    uint simdgroup,
    uint simdgroups) {
  value = simd_sum(value);
  if (lane == 0) {
    partial[simdgroup] = value;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return simd_sum(lane < simdgroups ? partial[lane] : 0.0f);
}
