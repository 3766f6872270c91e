// Products of few rows with packed weights, stored in blocks of two vectors of outputs in any of the weight types.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "team.h"
#include "vectors.h"

namespace {

constexpr int64_t PARTS = 2, WIDE = PARTS * LANES;
constexpr int64_t AHEAD = 128;  // twice as fast as no prefetching on a Sapphire Rapids; 32 to 128 differ little
constexpr int64_t NEAR_AHEAD = 16;
constexpr int64_t CHUNKS = 6;  // chunks of a product per thread

// Locates the weights of input k for one block of outputs: packed side by side …
template <class W, int STRIDE = 0>
struct Packed {
  const W *w, *ahead;  // `ahead`: the weights to prefetch, STRIDE of them for each input
  const W* at(int64_t k) const { return w + k * WIDE; }
  const W* later(int64_t k) const { return ahead + k * STRIDE; }
};
// … or scattered.
struct Scattered {
  const float* w;
  const int64_t* places;
  int64_t last;
  const float* at(int64_t k) const { return w + places[k]; }
  const float* later(int64_t k) const { return at(std::min(k + NEAR_AHEAD, last)); }
};

// ROWS rows (`next` apart) times one block of outputs, over all inputs: sums stay in registers. Memory is the
// bottleneck, so weights are prefetched.
template <int ROWS, class Weights>
inline void tile(const float* x, int64_t next, int64_t inputs, Weights weights, V (&sum)[ROWS][PARTS]) {
  V all[ROWS][PARTS]{};  // a local array, or the compiler would keep the sums in memory
  for (int64_t k = 0; k < inputs; k++) {
    const auto* const w = weights.at(k);
    __builtin_prefetch(weights.later(k));
    V own[PARTS];
#pragma GCC unroll 2
    for (int p = 0; p < PARTS; p++) own[p] = load(w + p * LANES);
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++) {
      const V in = splat(x[r * next + k]);
#pragma GCC unroll 2
      for (int p = 0; p < PARTS; p++) all[r][p] += in * own[p];
    }
  }
  std::memcpy(sum, all, sizeof all);
}

inline int64_t tiles_of(int64_t rows) { return (rows + TILE - 1) / TILE; }

// Calls f(std::integral_constant<int, count>, first, t) for tile t, which has `count` rows from `first` on.
template <int COUNT = TILE, class F>
inline void one_tile(const F& f, int64_t count, int64_t first, int64_t t) {
  if (count == COUNT) return f(std::integral_constant<int, COUNT>{}, first, t);
  if constexpr (COUNT > 1) one_tile<COUNT - 1>(f, count, first, t);
}

// Splits rows into as few tiles as possible of about equal size: a tile of a single row would stall on the latency of
// its own sums.
template <class F>
inline void in_tiles(int64_t rows, const F& f) {
  const int64_t tiles = tiles_of(rows);
  for (int64_t t = 0, first = 0; t < tiles; t++) {
    const int64_t count = (rows - first + tiles - t - 1) / (tiles - t);
    one_tile(f, count, first, t);
    first += count;
  }
}

// Calls f(count, first row, weights) over all rows, for the block at w. Memory would be idle while its weights are
// reused, so the tiles together prefetch the next block.
template <class W, class F>
inline void over_tiles(const W* w, int64_t inputs, int64_t rows, const F& f) {
  const int64_t tiles = tiles_of(rows);
  const auto shared = [&](auto parts) {
    in_tiles(rows, [&](auto count, int64_t r, int64_t t) {
      constexpr int STRIDE = WIDE / parts();
      f(count, r, Packed<W, STRIDE>{w, t < parts() ? w + inputs * (WIDE + t * STRIDE) : w});
    });
  };
  if (tiles == 1)
    one_tile([&](auto count, int64_t r, int64_t) { f(count, r, Packed<W, WIDE>{w, w + AHEAD * WIDE}); }, rows, 0, 0);
  else if (tiles == 2)
    shared(std::integral_constant<int, 2>{});
  else
    shared(std::integral_constant<int, 4>{});
}

// Runs f(first block, end) over all blocks of a product, in runs of adjacent blocks, so that memory is read in order.
template <class F>
inline void over_blocks(Team& team, int64_t blocks, const F& f) {
  const int64_t run = std::max<int64_t>(1, blocks / (CHUNKS * team.size()));
  team.run((blocks + run - 1) / run, [&](int64_t i) { f(i * run, std::min((i + 1) * run, blocks)); });
}

// x @ w + bias, plus `add` [rows, outputs] if given.
template <class W>
void linear(Team& team, const float* x, const W* w, const float* bias, const float* add, float* out, int64_t rows,
            int64_t inputs, int64_t outputs) {
  over_blocks(team, (outputs + WIDE - 1) / WIDE, [&](int64_t block, int64_t end) {
    for (; block < end; block++) {
      const int64_t first = block * WIDE;
      V same[PARTS]{};
      if (bias) std::memcpy(same, bias + first, sizeof(float) * std::min(outputs - first, WIDE));
      over_tiles(w + first * inputs, inputs, rows, [&](auto count, int64_t r, auto weights) {
        V sum[count()][PARTS];
        tile<count()>(x + r * inputs, inputs, inputs, weights, sum);
        for (int i = 0; i < count(); i++)
          for (int64_t p = 0, at = first; p < PARTS && at < outputs; p++, at += LANES) {
            V value = sum[i][p] + same[p];
            const int64_t to = (r + i) * outputs + at, left = std::min(outputs - at, LANES);
            if (add) {
              V own{};
              std::memcpy(&own, add + to, sizeof(float) * left);
              value = own + value;
            }
            put(out + to, value, left);
          }
      });
    }
  });
}

// silu(gate(x)) * up(x): a block of w has one vector of outputs of gate and the same outputs of up.
template <class W>
void gated(Team& team, const float* x, const W* w, float* out, int64_t rows, int64_t inputs, int64_t outputs) {
  constexpr int64_t HALF = PARTS / 2;
  over_blocks(team, (2 * outputs + WIDE - 1) / WIDE, [&](int64_t block, int64_t end) {
    for (; block < end; block++) {
      const int64_t first = block * WIDE / 2;
      over_tiles(w + 2 * first * inputs, inputs, rows, [&](auto count, int64_t r, auto weights) {
        V sum[count()][PARTS];
        tile<count()>(x + r * inputs, inputs, inputs, weights, sum);
        for (int i = 0; i < count(); i++)
          for (int64_t p = 0, at = first; p < HALF && at < outputs; p++, at += LANES) {
            const V silu = sum[i][p] / (1.0f + vexp(-sum[i][p]));
            put(out + (r + i) * outputs + at, silu * sum[i][p + HALF], outputs - at);
          }
      });
    }
  });
}

// A product: blocks of weights of a type (0 float32, 1 float16, 2 bfloat16), bias [outputs] or null.
struct Product {
  const void* w;
  const float* bias;
  int64_t kind, inputs, outputs;
};

inline void product(Team& team, const Product& p, const float* x, const float* add, float* out, int64_t rows) {
  if (p.kind == 0) linear(team, x, (const float*)p.w, p.bias, add, out, rows, p.inputs, p.outputs);
  if (p.kind == 1) linear(team, x, (const F16*)p.w, p.bias, add, out, rows, p.inputs, p.outputs);
  if (p.kind == 2) linear(team, x, (const BF16*)p.w, p.bias, add, out, rows, p.inputs, p.outputs);
}

inline void gated(Team& team, const Product& p, const float* x, float* out, int64_t rows) {
  if (p.kind == 0) gated(team, x, (const float*)p.w, out, rows, p.inputs, p.outputs);
  if (p.kind == 1) gated(team, x, (const F16*)p.w, out, rows, p.inputs, p.outputs);
  if (p.kind == 2) gated(team, x, (const BF16*)p.w, out, rows, p.inputs, p.outputs);
}

// Calls f(row) for all rows, in chunks: few rows take less time than sharing them would.
template <class F>
void over_rows(Team& team, int64_t rows, const F& f) {
  constexpr int64_t FEW = 16;
  team.run((rows + FEW - 1) / FEW, [&](int64_t i) {
    for (int64_t r = i * FEW; r < std::min(rows, (i + 1) * FEW); r++) f(r);
  });
}

}  // namespace
