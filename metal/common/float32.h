// log(1 + x) for x >= 0, exact to the last bits where 1 + x is rounded.
inline float log_1_plus(float x) {
  const float u = 1.0f + x;
  return u == 1.0f ? x : log(u) * x / (u - 1.0f);
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exp(-x)); }
