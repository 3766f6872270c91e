// Products and attention for packed rows of few tokens, where a CPU is bound by reading weights and KV.
//
// Arithmetic is float32 throughout. Weights are kept as float32, float16 or bfloat16, whichever holds them
// exactly, in blocks of 32 outputs: block b holds, for every input k, the weights of outputs 32 b to 32 b + 31
// (padded with zeros). Every output is summed over k in order, by itself, so a row's result does not depend on
// how many rows run beside it: a token verified in a tree has the logits that it has when decoded alone.
//
// Plain C interface, no torch headers: compiled in a few seconds by engine/kernels/build.py.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "team.h"
#include "vectors.h"

namespace {

constexpr int64_t WIDE = 32, PARTS = WIDE / LANES;
constexpr int64_t NEAR = 32;  // keys whose values stay in the nearest cache
constexpr int64_t AHEAD = 128;  // twice the speed of none on a Sapphire Rapids; 32 to 128 differ little
constexpr int64_t CHUNKS = 6;  // of a product, for each thread

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
        tile<count()>(x + r * inputs, inputs, w + first * inputs, sum);
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
        tile<count()>(x + r * inputs, inputs, w + 2 * first * inputs, sum);
        for (int i = 0; i < count(); i++)
          for (int64_t p = 0, at = first; p < HALF && at < outputs; p++, at += LANES) {
            const V silu = sum[i][p] / (1.0f + vexp(-sum[i][p]));
            put(out + (r + i) * outputs + at, silu * sum[i][p + HALF], outputs - at);
          }
      });
    }
  });
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

// A product: blocks of weights in a type (0 float32, 1 float16, 2 bfloat16), bias [outputs] or null.
struct Product {
  const void* w;
  const float* bias;
  int64_t kind, inputs, outputs;
};

// What M rows see. Row row[i] belongs to sequence seq[i] and sees that sequence's logical slots first[i] to
// tree[i] - 1, and those slots tree[i] + j for which bit j of mask[i] is set. table [sequences, stride]: the physical
// slot of each logical one.
struct Seen {
  const int64_t *row, *seq, *first, *tree, *mask, *table;
  int64_t stride, rows;
};

struct Heads {
  int64_t queries, kv, dim;
  float scale;
};

// A layer: norm, attention, norm, gated MLP, each half added to what came in.
struct Layer {
  const float *norm, *mlp_norm;
  float eps, mlp_eps;
  Product qkv, out, gate_up, down;  // gate_up: its outputs are the width of the MLP
  Heads heads;
};

// One caller's threads, and room for what lies between the products of a layer.
struct Workers {
  Team team;
  std::mutex one_at_a_time;
  std::vector<float> room;
};

void product(Team& team, const Product& p, const float* x, const float* add, float* out, int64_t rows) {
  if (p.kind == 0) linear(team, x, (const float*)p.w, p.bias, add, out, rows, p.inputs, p.outputs);
  if (p.kind == 1) linear(team, x, (const F16*)p.w, p.bias, add, out, rows, p.inputs, p.outputs);
  if (p.kind == 2) linear(team, x, (const BF16*)p.w, p.bias, add, out, rows, p.inputs, p.outputs);
}

void gated(Team& team, const Product& p, const float* x, float* out, int64_t rows) {
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

void rms_norm(Team& team, const float* x, const float* weight, float eps, float* out, int64_t rows, int64_t size) {
  over_rows(team, rows, [&](int64_t r) {
    const float* own = x + r * size;
    float squares;
    dots<1>(own, {own}, size, &squares);
    const float scale = 1.0f / std::sqrt(squares / (float)size + eps);
    for (int64_t i = 0; i < size; i++) out[r * size + i] = weight[i] * (own[i] * scale);
  });
}

// Rotate queries and keys of qkv [rows, heads + 2 kv_heads, dim] in place by cos and sin [rows, dim] (the halves of a
// head are its real and imaginary parts), and write keys and values to their slots of the cache.
void rotate_and_write(Team& team, float* qkv, const float* cos, const float* sin, float* keys, float* values,
                      const int64_t* slots, int64_t rows, const Heads& heads) {
  const int64_t dim = heads.dim, half = dim / 2, slot = heads.kv * dim;
  over_rows(team, rows, [&](int64_t r) {
    float* own = qkv + r * (heads.queries * dim + 2 * slot);
    const float *c = cos + r * dim, *s = sin + r * dim;
    for (int64_t h = 0; h < heads.queries + heads.kv; h++) {
      float *a = own + h * dim, *b = a + half;
      for (int64_t i = 0; i < half; i++) {
        const float real = a[i], imaginary = b[i];
        a[i] = real * c[i] - imaginary * s[i];
        b[i] = imaginary * c[i + half] + real * s[i + half];
      }
    }
    std::memcpy(keys + slots[r] * slot, own + heads.queries * dim, sizeof(float) * slot);
    std::memcpy(values + slots[r] * slot, own + heads.queries * dim + slot, sizeof(float) * slot);
  });
}

// One row, all query heads of KV head h. q: strides of a token and of a head are given; out [N, heads, dim]; keys,
// values [slots, kv_heads, dim].
void attend(const float* q, int64_t q_row, int64_t q_head, const float* keys, const float* values, float* out,
            const Seen& seen, const Heads& heads, int64_t r, int64_t h) {
  static thread_local std::vector<int64_t> at;     // offsets of the KV that the row sees
  static thread_local std::vector<float> weights;  // of them, for each head
  const int64_t share = heads.queries / heads.kv, dim = heads.dim, slot = heads.kv * dim;
  const int64_t* slots = seen.table + seen.seq[r] * seen.stride;
  at.clear();
  for (int64_t i = seen.first[r]; i < seen.tree[r]; i++) at.push_back(slots[i] * slot + h * dim);
  for (uint64_t bits = (uint64_t)seen.mask[r]; bits; bits &= bits - 1)
    at.push_back(slots[seen.tree[r] + __builtin_ctzll(bits)] * slot + h * dim);
  const int64_t length = (int64_t)at.size(), room = (length + LANES) / LANES * LANES;
  weights.resize(share * room);
  // All heads that share these keys take a few of them at a time, while those are in the nearest cache.
  const float* own = q + seen.row[r] * q_row + h * share * q_head;
  int64_t i = 0;
  for (; i + 4 <= length; i += 4)
    for (int64_t g = 0; g < share; g++)
      dots<4>(own + g * q_head, {keys + at[i], keys + at[i + 1], keys + at[i + 2], keys + at[i + 3]}, dim,
              &weights[g * room + i]);
  for (; i < length; i++)
    for (int64_t g = 0; g < share; g++) dots<1>(own + g * q_head, {keys + at[i]}, dim, &weights[g * room + i]);
  for (int64_t g = 0; g < share; g++) softmax(&weights[g * room], length, heads.scale);
  float* const to = out + (seen.row[r] * heads.queries + h * share) * dim;
  std::fill(to, to + share * dim, 0.0f);
  for (i = 0; i < length; i += NEAR)
    for (int64_t g = 0; g < share; g++)
      weigh(&weights[g * room + i], values, &at[i], std::min(NEAR, length - i), to + g * dim, dim);
}

void attend(Team& team, const float* q, int64_t q_row, int64_t q_head, const float* keys, const float* values,
            float* out, const Seen& seen, const Heads& heads) {
  team.run(seen.rows * heads.kv,
           [&](int64_t i) { attend(q, q_row, q_head, keys, values, out, seen, heads, i / heads.kv, i % heads.kv); });
}

// Holds the workers for one call, in the caller's thread.
struct Call {
  std::lock_guard<std::mutex> alone;
  NoSubnormals here;
  explicit Call(Workers* workers) : alone(workers->one_at_a_time) {}
};

}  // namespace

extern "C" {

Workers* specvlm_workers(int threads) { return new Workers{{threads, no_subnormals}, {}, {}}; }

void specvlm_dismiss(Workers* workers) { delete workers; }

// x [rows, inputs], out [rows, outputs].
void specvlm_linear(Workers* workers, const Product* p, const float* x, float* out, int64_t rows) {
  Call call(workers);
  product(workers->team, *p, x, nullptr, out, rows);
}

// down(silu(gate(x)) * up(x)).
void specvlm_gated_mlp(Workers* workers, const Product* gate_up, const Product* down, const float* x, float* out,
                       int64_t rows) {
  Call call(workers);
  workers->room.resize(rows * gate_up->outputs);
  gated(workers->team, *gate_up, x, workers->room.data(), rows);
  product(workers->team, *down, workers->room.data(), nullptr, out, rows);
}

// x / sqrt(mean(x^2) + eps) * weight
void specvlm_rms_norm(Workers* workers, const float* x, const float* weight, float eps, float* out, int64_t rows,
                      int64_t size) {
  Call call(workers);
  rms_norm(workers->team, x, weight, eps, out, rows, size);
}

void specvlm_rotate_and_write(Workers* workers, float* qkv, const float* cos, const float* sin, float* keys,
                              float* values, const int64_t* slots, int64_t rows, const Heads* heads) {
  Call call(workers);
  rotate_and_write(workers->team, qkv, cos, sin, keys, values, slots, rows, *heads);
}

void specvlm_attend(Workers* workers, const float* q, int64_t q_row, int64_t q_head, const float* keys,
                    const float* values, float* out, const Seen* seen, const Heads* heads) {
  Call call(workers);
  attend(workers->team, q, q_row, q_head, keys, values, out, *seen, *heads);
}

// All rows [rows, hidden] of x are in `seen`. cos, sin [rows, dim]; keys, values, slots: of the cache.
void specvlm_layer(Workers* workers, const Layer* layer, const float* x, float* out, int64_t rows, const float* cos,
                   const float* sin, float* keys, float* values, const int64_t* slots, const Seen* seen) {
  Call call(workers);
  Team& team = workers->team;
  const int64_t hidden = layer->qkv.inputs, attended = layer->out.inputs;
  const int64_t wide = std::max(layer->qkv.outputs, layer->gate_up.outputs);
  workers->room.resize(rows * (hidden + wide + attended));
  float *normed = workers->room.data(), *middle = normed + rows * hidden, *heads_out = middle + rows * wide;
  rms_norm(team, x, layer->norm, layer->eps, normed, rows, hidden);
  product(team, layer->qkv, normed, nullptr, middle, rows);
  rotate_and_write(team, middle, cos, sin, keys, values, slots, rows, layer->heads);
  attend(team, middle, layer->qkv.outputs, layer->heads.dim, keys, values, heads_out, *seen, layer->heads);
  product(team, layer->out, heads_out, x, out, rows);
  rms_norm(team, out, layer->mlp_norm, layer->mlp_eps, normed, rows, hidden);
  gated(team, layer->gate_up, normed, middle, rows);
  product(team, layer->down, middle, out, out, rows);
}
}
