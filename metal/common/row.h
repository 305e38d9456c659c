#include "float32.h"

// A row of K channels in the registers of one simdgroup: lane l holds channels l * E to l * E + E - 1, E even.
// Lanes beyond K / E hold zeros and take part in everything that goes across lanes.

template <int E>
float row_scale(thread const float* v, int width, float eps) {
  float sum = 0.0f;
  for (int i = 0; i < E; ++i) {
    sum += v[i] * v[i];
  }
  return precise::rsqrt(simd_sum(sum) / float(width) + eps);
}

// Neighbouring channels (2i, 2i + 1) are a complex number, multiplied by (factors[2i], factors[2i + 1]).
template <int E>
void row_rotate(thread float* v, const device float* factors) {
  for (int i = 0; i < E; i += 2) {
    const float a = v[i];
    const float b = v[i + 1];
    v[i] = a * factors[i] - b * factors[i + 1];
    v[i + 1] = a * factors[i + 1] + b * factors[i];
  }
}

// The largest magnitude among the BLOCK channels that this lane's belong to, and at least `tiny`; NaN if one is.
template <int E, int BLOCK>
float block_top(thread const float* v, float tiny) {
  float top = tiny;
  for (int i = 0; i < E; ++i) {
    top = larger(top, fabs(v[i]));
  }
  for (int step = 1; step < BLOCK / E; step *= 2) {
    top = larger(top, simd_shuffle_xor(top, ushort(step)));
  }
  return top;
}

// 2^ceil(log2(top / largest code)) from the bits of top: `carry` is the mantissa mask less the mantissa of the
// largest code, `exponent` its exponent.
inline float block_scale(float top, uint carry, uint exponent) {
  return as_type<float>((as_type<uint>(top) + carry - (exponent << 23)) & 0x7F800000u);
}

// The nearest multiple of `unit` times the value's power of two, which is no less than `least`; ties to even.
inline float nearest(float value, float least, float unit) {
  const float power = as_type<float>(as_type<uint>(value) & 0x7F800000u);
  const float step = (power > least ? power : least) * unit;
  return rint(value / step) * step;
}

// E4M3 round trip with a scale per BLOCK channels, of the channels that are `inside`.
template <int E, int BLOCK>
void row_q8(thread float* v, bool inside) {
  const float scale = block_scale(block_top<E, BLOCK>(v, 1e-4f), 0x1FFFFFu, 8u);
  if (inside) {
    for (int i = 0; i < E; ++i) {
      v[i] = nearest(v[i] / scale, 0.015625f, 0.125f) * scale;
    }
  }
}

// E2M1 round trip with a scale per BLOCK channels.
template <int E, int BLOCK>
void row_q4(thread float* v) {
  const float scale = block_scale(block_top<E, BLOCK>(v, 6.0f * 1.17549435e-38f), 0x3FFFFFu, 2u);
  for (int i = 0; i < E; ++i) {
    v[i] = nearest(v[i] / scale, 1.0f, 0.5f) * scale;
  }
}

// Walsh-Hadamard transform of all K channels, natural order, divided by sqrt(K); K a power of two.
template <int E, int K>
void row_hadamard(thread float* v, uint lane) {
  for (int step = 1; step < E; step *= 2) {
    for (int i = 0; i < E; ++i) {
      if ((i & step) == 0) {
        const float a = v[i];
        const float b = v[i + step];
        v[i] = a + b;
        v[i + step] = a - b;
      }
    }
  }
  for (int step = 1; step < K / E; step *= 2) {
    for (int i = 0; i < E; ++i) {
      const float other = simd_shuffle_xor(v[i], ushort(step));
      v[i] = (lane & uint(step)) ? other - v[i] : v[i] + other;
    }
  }
  const float scale = precise::rsqrt(float(K));
  for (int i = 0; i < E; ++i) {
    v[i] *= scale;
  }
}

// ROUND 0: nothing. 1: E4M3 of the first CHANNELS channels. 2: Hadamard transform, then E2M1 of all.
template <int E, int K, int ROUND, int CHANNELS, int BLOCK>
void row_round(thread float* v, uint lane) {
  if (ROUND == 1) {
    row_q8<E, BLOCK>(v, int(lane) * E < CHANNELS);
  } else if (ROUND == 2) {
    row_hadamard<E, K>(v, lane);
    row_q4<E, BLOCK>(v);
  }
}
