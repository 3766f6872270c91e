// Norms and whole layers, and the state that their calls share.
#pragma once

#include <cmath>
#include <cstdint>
#include <mutex>
#include <vector>

#include "attention.h"
#include "products.h"
#include "team.h"

namespace {

// A layer: norm, attention, norm, gated MLP, with a residual connection around each half.
struct Layer {
  const float *norm, *mlp_norm;
  float eps, mlp_eps;
  Product qkv, out, gate_up, down;  // gate_up: its outputs are the width of the MLP
  Heads heads;
};

// One caller's threads, and buffers for the intermediate results of a layer.
struct Workers {
  Team team;
  std::mutex one_at_a_time;
  std::vector<float> room;
  std::vector<int64_t> starts;
};

inline float squared(const float* x, int64_t size) {
  V sum{};
  int64_t i = 0;
  for (; i + LANES <= size; i += LANES) sum += load(x + i) * load(x + i);
  float all = total(sum);
  for (; i < size; i++) all += x[i] * x[i];
  return all;
}

// x / sqrt(mean(x^2) + eps) * weight, of one row.
inline void rms_norm(const float* x, const float* weight, float eps, float* out, int64_t size) {
  const float scale = 1.0f / std::sqrt(squared(x, size) / (float)size + eps);
  for (int64_t i = 0; i < size; i++) out[i] = weight[i] * (x[i] * scale);
}

inline void rms_norm(Team& team, const float* x, const float* weight, float eps, float* out, int64_t rows, int64_t size) {
  over_rows(team, rows, [&](int64_t r) { rms_norm(x + r * size, weight, eps, out + r * size, size); });
}

inline void run_layer(Workers& workers, const Layer& layer, const float* x, float* out, int64_t rows, const float* cos,
                      const float* sin, float* keys, float* values, const int64_t* slots, const Seen& seen) {
  Team& team = workers.team;
  const int64_t hidden = layer.qkv.inputs, attended = layer.out.inputs;
  const int64_t wide = std::max(layer.qkv.outputs, layer.gate_up.outputs);
  workers.room.resize(rows * (hidden + wide + attended));
  float *normed = workers.room.data(), *middle = normed + rows * hidden, *heads_out = middle + rows * wide;
  rms_norm(team, x, layer.norm, layer.eps, normed, rows, hidden);
  product(team, layer.qkv, normed, nullptr, middle, rows);
  rotate_and_write(team, middle, cos, sin, keys, values, slots, rows, layer.heads);
  attend(team, middle, layer.qkv.outputs, layer.heads.dim, keys, values, heads_out, seen, layer.heads, workers.starts);
  product(team, layer.out, heads_out, x, out, rows);
  rms_norm(team, out, layer.mlp_norm, layer.mlp_eps, normed, rows, hidden);
  gated(team, layer.gate_up, normed, middle, rows);
  product(team, layer.down, middle, out, out, rows);
}

}  // namespace
