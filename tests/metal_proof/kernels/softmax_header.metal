struct Maximum {
  static float identity() { return -INFINITY; }
  static float across(float value) { return simd_max(value); }
};
struct Sum {
  static float identity() { return 0.0f; }
  static float across(float value) { return simd_sum(value); }
};

// Combines one value per thread over the threadgroup; every thread gets the result.
template <typename Operation>
float reduce(float value, threadgroup float* scratch, uint lane, uint simdgroup, uint simdgroups) {
  value = Operation::across(value);
  if (lane == 0) {
    scratch[simdgroup] = value;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  value = Operation::across(lane < simdgroups ? scratch[lane] : Operation::identity());
  // The next reduction writes where slower threads still read.
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return value;
}

template <typename T>
float largest(const device T* values, uint first, uint step, uint count) {
  float result = -INFINITY;
  for (uint i = first; i < count; i += step) {
    result = max(result, float(values[i]));
  }
  return result;
}
