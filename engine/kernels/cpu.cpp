// Products and attention for packed rows of few tokens, where a CPU is bound by reading weights and KV.
//
// Arithmetic is float32 throughout. Weights are kept as float32, float16 or bfloat16, whichever holds them
// exactly, in blocks of 32 outputs: block b holds, for every input k, the weights of outputs 32 b to 32 b + 31
// (padded with zeros). Every output is summed over k in order, by itself, so a row's result does not depend on
// how many rows run beside it: a token verified in a tree has the logits that it has when decoded alone.
//
// Plain C interface, no torch headers: compiled in a few seconds by engine/kernels/build.py. OpenMP calls find
// the runtime that torch has loaded, so both share one pool of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace {

// A vector register of this processor, and how many rows' sums for a block of outputs fit into all of them.
#if defined(__AVX512F__)
constexpr int64_t LANES = 16, TILE = 12;
#elif defined(__AVX__)
constexpr int64_t LANES = 8, TILE = 3;
#else
constexpr int64_t LANES = 4, TILE = 2;
#endif
constexpr int64_t WIDE = 32, PARTS = WIDE / LANES;
constexpr int64_t NEAR = 32;  // keys whose values stay in the nearest cache
constexpr int64_t AHEAD = 128;  // twice the speed of none on a Sapphire Rapids; 32 to 128 differ little

typedef float V __attribute__((vector_size(4 * LANES)));
typedef int32_t VI __attribute__((vector_size(4 * LANES)));
typedef uint16_t VH __attribute__((vector_size(2 * LANES)));

struct F16 { uint16_t v; };
struct BF16 { uint16_t v; };

inline V load(const float* p) { V v; std::memcpy(&v, p, sizeof v); return v; }
inline V load(const BF16* p) {
  VH h;
  std::memcpy(&h, p, sizeof h);
  return (V)(__builtin_convertvector(h, VI) << 16);
}
inline V load(const F16* p) {
#if defined(__AVX512F__)
  return (V)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__F16C__)
  return (V)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else  // exponent and mantissa moved, then scaled: right for subnormals too
  VH h;
  std::memcpy(&h, p, sizeof h);
  VI i = __builtin_convertvector(h, VI), sign = (i & 0x8000) << 16, rest = (i & 0x7fff) << 13;
  V scaled = (V)rest * 0x1p112f;
  VI special = (i & 0x7c00) == 0x7c00;  // infinities and NaN
  return (V)(((VI)scaled & ~special) | ((rest | 0x7f800000) & special) | sign);
#endif
}
inline V splat(float x) { return x - V{}; }

// Numbers below 1e-38 are zero while this lives: a processor takes a hundred times as long over each of them, and
// attention makes many, of keys that hardly matter. (Without F16C, load needs them.)
struct NoSubnormals {
#if defined(__F16C__)
  const unsigned before = _mm_getcsr();
  NoSubnormals() { _mm_setcsr(before | 0x8040); }
  ~NoSubnormals() { _mm_setcsr(before); }
#endif
};

inline float total(V v) {
  float s[LANES];
  std::memcpy(s, &v, sizeof v);
  for (int64_t n = LANES / 2; n > 0; n /= 2)
    for (int64_t i = 0; i < n; i++) s[i] += s[i + n];
  return s[0];
}

// ROWS rows times one block of 32 outputs, all inputs: sums stay in registers. Memory is the bottleneck, so it is
// asked for AHEAD inputs before its turn, over the end of a block into the next.
template <int ROWS, class W>
inline void tile(const float* x, int64_t inputs, const W* w, V (&sum)[ROWS][PARTS]) {
  for (int r = 0; r < ROWS; r++)
    for (int p = 0; p < PARTS; p++) sum[r][p] = V{};
  for (int64_t k = 0; k < inputs; k++) {
    __builtin_prefetch(w + (k + AHEAD) * WIDE);
    // What is fewer waits in registers.
    if constexpr (PARTS < ROWS) {
      V own[PARTS];
      for (int p = 0; p < PARTS; p++) own[p] = load(w + k * WIDE + p * LANES);
      for (int r = 0; r < ROWS; r++) {
        const V in = splat(x[r * inputs + k]);
        for (int p = 0; p < PARTS; p++) sum[r][p] += in * own[p];
      }
    } else {
      V in[ROWS];
      for (int r = 0; r < ROWS; r++) in[r] = splat(x[r * inputs + k]);
      for (int p = 0; p < PARTS; p++) {
        const V own = load(w + k * WIDE + p * LANES);
        for (int r = 0; r < ROWS; r++) sum[r][p] += in[r] * own;
      }
    }
  }
}

inline void put(float* out, V value, int64_t count) {
  std::memcpy(out, &value, sizeof(float) * std::min(count, LANES));
}

// Calls f(std::integral_constant<int, COUNT>, first row) over all rows, COUNT at most TILE.
template <int COUNT = TILE, class F>
inline void in_tiles(int64_t rows, F f, int64_t first = 0) {
  for (; rows - first >= COUNT; first += COUNT) f(std::integral_constant<int, COUNT>{}, first);
  if constexpr (COUNT > 1) in_tiles<COUNT - 1>(rows, f, first);
}

// x @ w + bias. Threads take runs of neighbouring blocks, so that each reads memory in order.
template <class W>
void linear(const float* x, const W* w, const float* bias, float* out, int64_t rows, int64_t inputs, int64_t outputs,
            int threads) {
#pragma omp parallel num_threads(threads)
  {
    NoSubnormals here;
#pragma omp for schedule(static)
    for (int64_t first = 0; first < outputs; first += WIDE) {
      V add[PARTS]{};
      if (bias) std::memcpy(add, bias + first, sizeof(float) * std::min(outputs - first, WIDE));
      in_tiles(rows, [&](auto count, int64_t r) {
        V sum[count()][PARTS];
        tile<count()>(x + r * inputs, inputs, w + first * inputs, sum);
        for (int i = 0; i < count(); i++)
          for (int64_t p = 0, at = first; p < PARTS && at < outputs; p++, at += LANES)
            put(out + (r + i) * outputs + at, sum[i][p] + add[p], outputs - at);
      });
    }
  }
}

// exp, to about 2 units in the last place (Cephes' polynomial). NaN stays NaN.
inline V vexp(V x) {
  x = x < splat(-87.0f) ? splat(-87.0f) : x;
  x = x > splat(88.0f) ? splat(88.0f) : x;
  const V scaled = x * 1.44269504088896341f + 12582912.0f;  // rounds to the nearest integer in the low bits
  const V n = scaled - 12582912.0f;
  const V r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  V p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const VI power = ((VI)scaled - 0x4b400000 + 127) << 23;
  return p * (V)power;
}

// silu(gate(x)) * up(x): a block of w has 16 outputs of gate and the same 16 of up.
template <class W>
void gated(const float* x, const W* w, float* out, int64_t rows, int64_t inputs, int64_t outputs, int threads) {
  constexpr int64_t HALF = PARTS / 2;
#pragma omp parallel num_threads(threads)
  {
    NoSubnormals here;
#pragma omp for schedule(static)
    for (int64_t first = 0; first < outputs; first += WIDE / 2) {
      in_tiles(rows, [&](auto count, int64_t r) {
        V sum[count()][PARTS];
        tile<count()>(x + r * inputs, inputs, w + 2 * first * inputs, sum);
        for (int i = 0; i < count(); i++)
          for (int64_t p = 0, at = first; p < HALF && at < outputs; p++, at += LANES) {
            const V silu = sum[i][p] / (1.0f + vexp(-sum[i][p]));
            put(out + (r + i) * outputs + at, silu * sum[i][p + HALF], outputs - at);
          }
      });
    }
  }
}

// products[j] = a . b[j] for COUNT vectors of b, each summed in the same order whatever COUNT is.
template <int COUNT>
inline void dots(const float* a, const float* const (&b)[COUNT], int64_t n, float* products) {
  V sum[COUNT]{};
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) {
    const V own = load(a + i);
    for (int j = 0; j < COUNT; j++) sum[j] += own * load(b[j] + i);
  }
  for (int j = 0; j < COUNT; j++) {
    products[j] = total(sum[j]);
    for (int64_t k = i; k < n; k++) products[j] += a[k] * b[j][k];
  }
}

// out += sum of weight[i] * values[at[i]]: COUNT vectors lie in registers over all keys.
template <int COUNT>
inline void weigh(const float* weight, const float* values, const int64_t* at, int64_t length, float* out) {
  V sum[COUNT];
  std::memcpy(sum, out, sizeof sum);
  for (int64_t i = 0; i < length; i++) {
    const V own = splat(weight[i]);
    for (int c = 0; c < COUNT; c++) sum[c] += own * load(values + at[i] + c * LANES);
  }
  std::memcpy(out, sum, sizeof sum);
}

inline void weigh(const float* weight, const float* values, const int64_t* at, int64_t length, float* out, int64_t dim) {
  int64_t d = 0;
  for (; d + 4 * LANES <= dim; d += 4 * LANES) weigh<4>(weight, values + d, at, length, out + d);
  for (; d + LANES <= dim; d += LANES) weigh<1>(weight, values + d, at, length, out + d);
  for (; d < dim; d++)
    for (int64_t i = 0; i < length; i++) out[d] += weight[i] * values[at[i] + d];
}

// Products to weights that sum to 1. Room up to a multiple of LANES is used and cleared.
inline void softmax(float* scores, int64_t length, float scale) {
  float most = scores[0];
  for (int64_t i = 1; i < length; i++) most = scores[i] > most ? scores[i] : most;
  V all{};
  for (int64_t i = 0; i < length; i += LANES) {
    V e = vexp((load(scores + i) - most) * scale);
    for (int64_t j = length - i; j < LANES; j++) e[j] = 0.0f;
    all += e;
    std::memcpy(scores + i, &e, sizeof e);
  }
  const float norm = 1.0f / total(all);
  for (int64_t i = 0; i < length; i++) scores[i] *= norm;
}

}  // namespace

extern "C" {

// kind: 0 float32, 1 float16, 2 bfloat16. x [rows, inputs], out [rows, outputs]; bias [outputs] or null.
void specvlm_linear(int threads, const float* x, const void* w, int kind, const float* bias, float* out,
                    int64_t rows, int64_t inputs, int64_t outputs) {
  if (kind == 0) linear(x, (const float*)w, bias, out, rows, inputs, outputs, threads);
  if (kind == 1) linear(x, (const F16*)w, bias, out, rows, inputs, outputs, threads);
  if (kind == 2) linear(x, (const BF16*)w, bias, out, rows, inputs, outputs, threads);
}

// down(silu(gate(x)) * up(x)); middle: room for [rows, width].
void specvlm_gated_mlp(int threads, const float* x, const void* gate_up, const void* down, int kind, float* middle,
                       float* out, int64_t rows, int64_t inputs, int64_t width) {
  if (kind == 0) gated(x, (const float*)gate_up, middle, rows, inputs, width, threads);
  if (kind == 1) gated(x, (const F16*)gate_up, middle, rows, inputs, width, threads);
  if (kind == 2) gated(x, (const BF16*)gate_up, middle, rows, inputs, width, threads);
  specvlm_linear(threads, middle, down, kind, nullptr, out, rows, width, inputs);
}

// x / sqrt(mean(x^2) + eps) * weight
void specvlm_rms_norm(int threads, const float* x, const float* weight, float eps, float* out, int64_t rows,
                      int64_t size) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows > 16)
  for (int64_t r = 0; r < rows; r++) {
    const float* own = x + r * size;
    float squares;
    dots<1>(own, {own}, size, &squares);
    const float scale = 1.0f / std::sqrt(squares / (float)size + eps);
    for (int64_t i = 0; i < size; i++) out[r * size + i] = weight[i] * (own[i] * scale);
  }
}

// Rotate queries and keys of qkv [rows, heads + 2 kv_heads, dim] in place by cos and sin [rows, dim] (the halves of a
// head are its real and imaginary parts), and write keys and values to their slots of the cache.
void specvlm_rotate_and_write(int threads, float* qkv, const float* cos, const float* sin, float* keys, float* values,
                              const int64_t* slots, int64_t rows, int64_t heads, int64_t kv_heads, int64_t dim) {
  const int64_t half = dim / 2, slot = kv_heads * dim;
#pragma omp parallel for schedule(static) num_threads(threads) if (rows > 16)
  for (int64_t r = 0; r < rows; r++) {
    float* own = qkv + r * (heads * dim + 2 * slot);
    const float *c = cos + r * dim, *s = sin + r * dim;
    for (int64_t h = 0; h < heads + kv_heads; h++) {
      float *a = own + h * dim, *b = a + half;
      for (int64_t i = 0; i < half; i++) {
        const float real = a[i], imaginary = b[i];
        a[i] = real * c[i] - imaginary * s[i];
        b[i] = imaginary * c[i + half] + real * s[i + half];
      }
    }
    std::memcpy(keys + slots[r] * slot, own + heads * dim, sizeof(float) * slot);
    std::memcpy(values + slots[r] * slot, own + heads * dim + slot, sizeof(float) * slot);
  }
}

// Attention of M of the row's tokens. Token row[i] belongs to sequence seq[i] and sees that sequence's logical slots
// first[i] to tree[i] - 1, and those slots tree[i] + j for which bit j of mask[i] is set.
// q: strides of a token and of a head are given; out [N, heads, dim]. keys, values [slots, kv_heads, dim].
// table [sequences, table_stride]: the physical slot of each logical one.
void specvlm_attend(int threads, const float* q, int64_t q_row, int64_t q_head, const float* keys,
                    const float* values, float* out, const int64_t* row, const int64_t* seq, const int64_t* first,
                    const int64_t* tree, const int64_t* mask, const int64_t* table, int64_t table_stride, int64_t rows,
                    int64_t heads, int64_t kv_heads, int64_t dim, float scale) {
  const int64_t share = heads / kv_heads, slot = kv_heads * dim;
#pragma omp parallel num_threads(threads)
  {
    NoSubnormals here;
    std::vector<int64_t> at;     // offsets of the KV that a row sees
    std::vector<float> weights;  // of them, for each head
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < rows * kv_heads; task++) {
      const int64_t h = task % kv_heads, r = task / kv_heads;
      const int64_t* slots = table + seq[r] * table_stride;
      at.clear();
      for (int64_t i = first[r]; i < tree[r]; i++) at.push_back(slots[i] * slot + h * dim);
      for (uint64_t bits = (uint64_t)mask[r]; bits; bits &= bits - 1)
        at.push_back(slots[tree[r] + __builtin_ctzll(bits)] * slot + h * dim);
      const int64_t length = (int64_t)at.size(), room = (length + LANES) / LANES * LANES;
      weights.resize(share * room);
      // All heads that share these keys take a few of them at a time, while those are in the nearest cache.
      const float* own = q + row[r] * q_row + h * share * q_head;
      int64_t i = 0;
      for (; i + 4 <= length; i += 4)
        for (int64_t g = 0; g < share; g++)
          dots<4>(own + g * q_head, {keys + at[i], keys + at[i + 1], keys + at[i + 2], keys + at[i + 3]}, dim,
                  &weights[g * room + i]);
      for (; i < length; i++)
        for (int64_t g = 0; g < share; g++) dots<1>(own + g * q_head, {keys + at[i]}, dim, &weights[g * room + i]);
      for (int64_t g = 0; g < share; g++) softmax(&weights[g * room], length, scale);
      float* const to = out + (row[r] * heads + h * share) * dim;
      std::fill(to, to + share * dim, 0.0f);
      for (i = 0; i < length; i += NEAR)
        for (int64_t g = 0; g < share; g++)
          weigh(&weights[g * room + i], values, &at[i], std::min(NEAR, length - i), to + g * dim, dim);
    }
  }
}
}
