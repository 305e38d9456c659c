// Weights as MLX packs them: a block is 32 neighbouring weights of a row, in BITS words of 32 bits, first
// weight in the lowest bits. It lies in one group, so it has one scale (affine: and one bias).
enum {
  MXFP4 = 0,   // e2m1, scale e8m0 (uint8) for 32
  MXFP8 = 1,   // e4m3, scale e8m0 (uint8) for 32
  AFFINE = 2,  // unsigned integers, scale and bias for GROUP
};

// E8M0: 2^(byte - 127); byte 0 is below the smallest normal float.
inline float scale_of(uint8_t code) {
  return as_type<float>(code == 0 ? 0x00400000u : uint(code) << 23);
}
inline float scale_of(float value) {
  return value;
}
inline float scale_of(half value) {
  return float(value);
}
inline float scale_of(bfloat value) {
  return float(value);
}

// The words of a block.
template <int BITS>
void load_block(const device uint32_t* from, thread uint* words) {
  for (int i = 0; i < BITS; i++) {
    words[i] = from[i];
  }
}

// Weight i of a block, before its scale. An e2m1 or e4m3 code shifted into a half is the value but for the
// exponent's offset, which the factor makes good; both steps are exact.
template <int MODE, int BITS>
float weight(const thread uint* words, int i) {
  if (MODE == MXFP4) {
    const ushort code = ushort(words[i / 8] >> (4 * (i % 8)));
    const half value = as_type<half>(ushort((code & 8) << 12 | (code & 7) << 9));
    return float(value) * 16384.0f;
  }
  if (MODE == MXFP8) {
    const ushort code = ushort(words[i / 4] >> (8 * (i % 4)));
    const half value = as_type<half>(ushort((code & 0x80) << 8 | (code & 0x7F) << 7));
    return (code & 0x7F) == 0x7F ? NAN : float(value) * 256.0f;
  }
  const int bit = BITS * i;
  uint code = words[bit / 32] >> (bit % 32);
  if (bit % 32 + BITS > 32) {
    code |= words[bit / 32 + 1] << (32 - bit % 32);
  }
  return float(code & ((1u << BITS) - 1));
}

// 32 values of an activation row, and their sum, which affine biases multiply.
template <typename X>
float load_values(const device X* from, thread float* values) {
  float sum = 0.0f;
  for (int i = 0; i < 32; i += 4) {
    const vec<X, 4> four = *(const device vec<X, 4>*)(from + i);
    for (int j = 0; j < 4; j++) {
      values[i + j] = float(four[j]);
      sum += values[i + j];
    }
  }
  return sum;
}

// A quantised matrix [rows, blocks x 32], rows one after another.
template <typename S>
struct Matrix {
  const device uint32_t* codes;
  const device S* scales;
  const device S* biases;  // affine only
};

// The products of CHANNELS neighbouring rows of a matrix with x, and of the same rows of each further part of
// the matrix, of which there are PARTS with `rows` rows: lanes 0 to 31 of a simdgroup each take every 32nd
// block, and the sums are left in every lane. Beyond the end of a part its last row is taken instead.
template <int MODE, int BITS, int GROUP, int CHANNELS, int PARTS, typename X, typename S>
void row_products(
    const device X* x,
    Matrix<S> matrix,
    uint blocks,
    uint first,
    uint rows,
    uint lane,
    thread float* sums) {
  for (int r = 0; r < CHANNELS * PARTS; r++) {
    sums[r] = 0.0f;
  }
  for (uint block = lane; block < blocks; block += 32) {
    float values[32];
    const float sum = load_values(x + block * 32, values);
    for (int r = 0; r < CHANNELS * PARTS; r++) {
      const ulong row = r / CHANNELS * rows + min(first + r % CHANNELS, rows - 1);
      uint words[BITS];
      load_block<BITS>(matrix.codes + (row * blocks + block) * BITS, words);
      float dot = 0.0f;
      for (int i = 0; i < 32; i++) {
        dot += weight<MODE, BITS>(words, i) * values[i];
      }
      const ulong at = (row * blocks + block) * 32 / GROUP;
      dot *= scale_of(matrix.scales[at]);
      if (MODE == AFFINE) {
        dot += sum * scale_of(matrix.biases[at]);
      }
      sums[r] += dot;
    }
  }
  for (int r = 0; r < CHANNELS * PARTS; r++) {
    sums[r] = simd_sum(sums[r]);
  }
}

// A quarter of a block, eight weights with scale (and bias) applied.
template <int MODE, int BITS, int GROUP, typename S>
void eight_weights(Matrix<S> matrix, uint blocks, uint row, uint block, uint quarter, threadgroup float* to) {
  uint words[BITS];
  load_block<BITS>(matrix.codes + (ulong(row) * blocks + block) * BITS, words);
  const ulong at = (ulong(row) * blocks + block) * 32 / GROUP;
  const float scale = scale_of(matrix.scales[at]);
  const float bias = MODE == AFFINE ? scale_of(matrix.biases[at]) : 0.0f;
  for (int i = 0; i < 8; i++) {
    to[i] = weight<MODE, BITS>(words, quarter * 8 + i) * scale + bias;
  }
}
