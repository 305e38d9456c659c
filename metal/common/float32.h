// Functions are `precise::`: what is not said to be is `fast::` in MLX's kernels, and a fast log is off by 2^-21
// near 1. min, max and clamp of floats aren't called: precise ones drop a NaN, of fast ones it is undefined.

// As MLX's minimum and maximum: NaN if either is.
inline float smaller(float a, float b) { return a < b || isnan(a) ? a : b; }
inline float larger(float a, float b) { return a > b || isnan(a) ? a : b; }

// log(1 + x) for x >= 0, off by the last bits only where 1 + x is rounded too.
inline float log_1_plus(float x) {
  const float u = 1.0f + x;
  return u == 1.0f ? x : precise::log(u) * x / (u - 1.0f);
}

inline float sigmoid(float x) { return 1.0f / (1.0f + precise::exp(-x)); }

// A float as an unsigned number of the same order: -0 is 0, a NaN is below everything.
inline uint order_of(float value) {
  const uint bits = as_type<uint>(value);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) {
    return 0;
  }
  if ((bits & 0x7FFFFFFF) == 0) {
    return 0x80000000;
  }
  return (bits & 0x80000000) != 0 ? ~bits : bits | 0x80000000;
}
