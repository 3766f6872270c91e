// Products of few rows with packed weights: blocks of 32 outputs, in whichever type holds them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "team.h"
#include "vectors.h"

namespace {

constexpr int64_t WIDE = 32, PARTS = WIDE / LANES;
constexpr int64_t AHEAD = 128;  // twice the speed of none on a Sapphire Rapids; 32 to 128 differ little
constexpr int64_t NEAR_AHEAD = 16;
constexpr int64_t CHUNKS = 6;  // of a product, for each thread

// Where the weights of input k are, for one block of 32 outputs: side by side …
template <class W>
struct Packed {
  const W* w;
  const W* at(int64_t k) const { return w + k * WIDE; }
  const W* later(int64_t k) const { return at(k + AHEAD); }  // over the end of a block into the next
};
// … or scattered.
struct Scattered {
  const float* w;
  const int64_t* places;
  int64_t last;
  const float* at(int64_t k) const { return w + places[k]; }
  const float* later(int64_t k) const { return at(std::min(k + NEAR_AHEAD, last)); }
};

// ROWS rows (`next` apart) times one block of 32 outputs, all inputs: sums stay in registers. Memory is the bottleneck,
// so it is asked for before its turn.
template <int ROWS, class Weights>
inline void tile(const float* x, int64_t next, int64_t inputs, const Weights& weights, V (&sum)[ROWS][PARTS]) {
  for (int r = 0; r < ROWS; r++)
    for (int p = 0; p < PARTS; p++) sum[r][p] = V{};
  for (int64_t k = 0; k < inputs; k++) {
    const auto* const w = weights.at(k);
    __builtin_prefetch(weights.later(k));
    // What is fewer waits in registers.
    if constexpr (PARTS < ROWS) {
      V own[PARTS];
      for (int p = 0; p < PARTS; p++) own[p] = load(w + p * LANES);
      for (int r = 0; r < ROWS; r++) {
        const V in = splat(x[r * next + k]);
        for (int p = 0; p < PARTS; p++) sum[r][p] += in * own[p];
      }
    } else {
      V in[ROWS];
      for (int r = 0; r < ROWS; r++) in[r] = splat(x[r * next + k]);
      for (int p = 0; p < PARTS; p++) {
        const V own = load(w + p * LANES);
        for (int r = 0; r < ROWS; r++) sum[r][p] += in[r] * own;
      }
    }
  }
}

// Calls f(std::integral_constant<int, COUNT>, first row) over all rows, COUNT at most TILE.
template <int COUNT = TILE, class F>
inline void in_tiles(int64_t rows, F f, int64_t first = 0) {
  for (; rows - first >= COUNT; first += COUNT) f(std::integral_constant<int, COUNT>{}, first);
  if constexpr (COUNT > 1) in_tiles<COUNT - 1>(rows, f, first);
}

// Runs f(first block, end) over all blocks of a product, in runs of neighbours, so that memory is read in order.
template <class F>
inline void over_blocks(Team& team, int64_t blocks, const F& f) {
  const int64_t run = std::max<int64_t>(1, blocks / (CHUNKS * team.size()));
  team.run((blocks + run - 1) / run, [&](int64_t i) { f(i * run, std::min((i + 1) * run, blocks)); });
}

// x @ w + bias, plus `add` [rows, outputs] where given.
template <class W>
void linear(Team& team, const float* x, const W* w, const float* bias, const float* add, float* out, int64_t rows,
            int64_t inputs, int64_t outputs) {
  over_blocks(team, (outputs + WIDE - 1) / WIDE, [&](int64_t block, int64_t end) {
    for (; block < end; block++) {
      const int64_t first = block * WIDE;
      V same[PARTS]{};
      if (bias) std::memcpy(same, bias + first, sizeof(float) * std::min(outputs - first, WIDE));
      in_tiles(rows, [&](auto count, int64_t r) {
        V sum[count()][PARTS];
        tile<count()>(x + r * inputs, inputs, inputs, Packed<W>{w + first * inputs}, sum);
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

// silu(gate(x)) * up(x): a block of w has 16 outputs of gate and the same 16 of up.
template <class W>
void gated(Team& team, const float* x, const W* w, float* out, int64_t rows, int64_t inputs, int64_t outputs) {
  constexpr int64_t HALF = PARTS / 2;
  over_blocks(team, (2 * outputs + WIDE - 1) / WIDE, [&](int64_t block, int64_t end) {
    for (; block < end; block++) {
      const int64_t first = block * WIDE / 2;
      in_tiles(rows, [&](auto count, int64_t r) {
        V sum[count()][PARTS];
        tile<count()>(x + r * inputs, inputs, inputs, Packed<W>{w + 2 * first * inputs}, sum);
        for (int i = 0; i < count(); i++)
          for (int64_t p = 0, at = first; p < HALF && at < outputs; p++, at += LANES) {
            const V silu = sum[i][p] / (1.0f + vexp(-sum[i][p]));
            put(out + (r + i) * outputs + at, silu * sum[i][p + HALF], outputs - at);
          }
      });
    }
  });
}

// A product: blocks of weights in a type (0 float32, 1 float16, 2 bfloat16), bias [outputs] or null.
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

// Few rows take less time than it takes to share them.
template <class F>
void over_rows(Team& team, int64_t rows, const F& f) {
  constexpr int64_t FEW = 16;
  team.run((rows + FEW - 1) / FEW, [&](int64_t i) {
    for (int64_t r = i * FEW; r < std::min(rows, (i + 1) * FEW); r++) f(r);
  });
}

}  // namespace
