// Float vectors as wide as this processor's registers, with compiler vector extensions; half-precision loads; exp.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace {

// LANES: the floats in a vector register. TILE: the rows whose sums, two vectors each, fit into registers and leave
// some for weights and inputs: 12 of 16, or 24 of 32. Six rows thus take hardly longer than one where memory is the
// bottleneck; wider blocks with fewer rows would read and decode each weight more often.
#if defined(__AVX512F__)
constexpr int64_t LANES = 16, TILE = 12;
#elif defined(__AVX__)
constexpr int64_t LANES = 8, TILE = 6;
#else
constexpr int64_t LANES = 4, TILE = 6;
#endif

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
#else  // move exponent and mantissa, then scale: correct for subnormals, too
  VH h;
  std::memcpy(&h, p, sizeof h);
  VI i = __builtin_convertvector(h, VI), sign = (i & 0x8000) << 16, rest = (i & 0x7fff) << 13;
  V scaled = (V)rest * 0x1p112f;
  VI special = (i & 0x7c00) == 0x7c00;  // infinities and NaN
  return (V)(((VI)scaled & ~special) | ((rest | 0x7f800000) & special) | sign);
#endif
}
inline V splat(float x) { return x - V{}; }

// Flushes subnormals (below 1e-38) to zero: a processor takes a hundred times as long for each of them, and attention
// produces many, for keys that hardly matter. (Without F16C, load needs them.)
inline void no_subnormals() {
#if defined(__F16C__)
  _mm_setcsr(_mm_getcsr() | 0x8040);
#endif
}
struct NoSubnormals {  // in the calling thread, for the lifetime of this object
#if defined(__F16C__)
  const unsigned before = _mm_getcsr();
  NoSubnormals() { no_subnormals(); }
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

// If HIGH, element J is b[J] where bit S of J is set, and a[J + S] elsewhere; otherwise it is a[J] where the bit is not
// set, and b[J - S] elsewhere.
template <size_t S, bool HIGH, size_t... J>
inline V mixed(V a, V b, std::index_sequence<J...>) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, (int)(HIGH ? (J & S ? LANES + J : J + S) : (J & S ? LANES + J - S : J))...);
#else
  return __builtin_shuffle(a, b, VI{(int)(HIGH ? (J & S ? LANES + J : J + S) : (J & S ? LANES + J - S : J))...});
#endif
}

// Transposes by swapping ever smaller squares across the diagonal. Unrolled, so that rows stay in registers.
template <size_t S = LANES / 2>
inline void transpose(V (&rows)[LANES]) {
  constexpr auto all = std::make_index_sequence<LANES>{};
#pragma GCC unroll 16
  for (size_t i = 0; i < LANES; i++)
    if (!(i & S)) {
      const V a = rows[i], b = rows[i + S];
      rows[i] = mixed<S, false>(a, b, all);
      rows[i + S] = mixed<S, true>(a, b, all);
    }
  if constexpr (S > 1) transpose<S / 2>(rows);
}

inline void put(float* out, V value, int64_t count) {
  std::memcpy(out, &value, sizeof(float) * std::min(count, LANES));
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

}  // namespace
