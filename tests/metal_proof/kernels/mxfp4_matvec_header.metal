// E2M1: sign, two bits of exponent, one of mantissa.
constant float e2m1_values[16] = {
    0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0};

// E8M0: 2^(byte - 127); byte 0 is below the smallest normal float.
inline float e8m0(uchar byte) {
  return byte == 0 ? as_type<float>(0x00400000u) : as_type<float>(uint(byte) << 23);
}

// The product of eight packed weights, low nibble first, with eight values of x.
inline float dot8(uint packed, const threadgroup float* x, constant float* table) {
  float sum = 0;
  for (uint i = 0; i < 8; i++) {
    sum += table[packed & 15] * x[i];
    packed >>= 4;
  }
  return sum;
}

template <typename T>
void stage(const device T* from, threadgroup float* to, uint first, uint step, uint count) {
  for (uint i = first; i < count; i += step) {
    to[i] = float(from[i]);
  }
}
