// Grows draft trees level by level (EAGLE-2, section 4) in one call, as eagle_drafter.py does with tensors.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "layers.h"

namespace {

// An EAGLE draft: a layer over fc([norm(embedding); norm(state)]), and a head whose row i is token vocabulary[i].
struct Draft {
  const float *embed_norm, *state_norm;
  float embed_eps, state_eps;
  Product fc, head;
  const Layer* layer;
  const float* embeddings;
  const int64_t* vocabulary;
};

// Trees of S sequences, with `width` children per node and `width` nodes with children in each level.
struct Growth {
  int64_t sequences, width, levels;
  const float* states;             // of the roots, [S, hidden]
  const int64_t *limits, *starts;  // for each sequence: children per node; logical slot of node 0
  const int64_t* table;            // [S, stride]: the physical slot of each logical one
  int64_t stride;
  const float *cos, *sin;  // [levels - 1, S, dim]
  float *keys, *values;
  int64_t *token_ids, *parents;  // [S, width + (levels - 1) * width * width]
  float* scores;
};

// The nodes of all sequences that get children, `width` each: their indices among the candidates, their scores, and
// their ancestors among the nodes that have run, themselves included. `states` are those of their parents.
struct Frontier {
  std::vector<int64_t> token_ids, indices, masks;
  std::vector<float> scores, states;
  explicit Frontier(int64_t rows, int64_t hidden)
      : token_ids(rows), indices(rows), masks(rows), scores(rows), states(rows * hidden) {}
};

// The `width` likeliest of `size` logits, best first: their log-probabilities and indices. The log-probability is -inf
// beyond `limit`, and for all if any logit is NaN.
inline void likeliest(const float* logits, int64_t size, int64_t width, int64_t limit, float* values, int64_t* places) {
  const float none = -std::numeric_limits<float>::infinity();
  std::fill(values, values + width, none);
  std::iota(places, places + width, 0);
  for (int64_t i = 0; i < size; i += LANES) {
    const int64_t end = std::min(i + LANES, size);
    float most = none;
    for (int64_t j = i; j < end; j++) most = logits[j] > most ? logits[j] : most;
    if (!(most > values[width - 1])) continue;
    for (int64_t j = i; j < end; j++) {
      int64_t at = width;
      while (at > 0 && logits[j] > values[at - 1]) at--;
      if (at == width) continue;
      std::copy_backward(values + at, values + width - 1, values + width);
      std::copy_backward(places + at, places + width - 1, places + width);
      values[at] = logits[j], places[at] = j;
    }
  }
  const float top = values[0];
  V sum{};
  int64_t i = 0;
  for (; i + LANES <= size; i += LANES) sum += vexp(load(logits + i) - top);
  float all = total(sum);
  for (; i < size; i++) all += std::exp(logits[i] - top);
  const float norm = top + std::log(all);
  for (int64_t j = 0; j < width; j++) values[j] = j < limit && norm == norm ? values[j] - norm : none;
}

// Makes the best of each sequence's newest candidates (those from `first` on), whatever their parents, the new
// frontier. `out`: the states that gave them.
inline void go_on(Frontier& frontier, const Growth& g, int64_t total, int64_t first, const float* out, int64_t hidden) {
  const int64_t width = g.width, run = 1 + (first - width) / (width * width);
  const std::vector<int64_t> before = frontier.masks;
  std::vector<int64_t> order(width * width);
  for (int64_t s = 0; s < g.sequences; s++) {
    const float* scores = g.scores + s * total + first;
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + width, order.end(), [&](int64_t a, int64_t b) {
      return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
    });
    for (int64_t c = 0; c < width; c++) {
      const int64_t row = s * width + c, parent = s * width + order[c] / width;
      frontier.token_ids[row] = g.token_ids[s * total + first + order[c]];
      frontier.indices[row] = first + order[c];
      frontier.masks[row] = before[parent] | (int64_t)((uint64_t)1 << (run * width + c));
      frontier.scores[row] = scores[order[c]];
      std::memcpy(&frontier.states[row * hidden], out + parent * hidden, sizeof(float) * hidden);
    }
  }
}

inline void grow(Workers& workers, const Draft& draft, const Growth& g) {
  Team& team = workers.team;
  const int64_t hidden = draft.layer->qkv.inputs, dim = draft.layer->heads.dim, size = draft.head.outputs;
  const int64_t width = g.width, rows = g.sequences * width, total = width + (g.levels - 1) * width * width;
  const auto room = [](int64_t count) { return std::unique_ptr<float[]>(new float[count]); };
  const auto logits = room(rows * size), joined = room(rows * 2 * hidden), inputs = room(rows * hidden);
  const auto out = room(rows * hidden), cos = room(rows * dim), sin = room(rows * dim), scores = room(rows * width);
  std::vector<int64_t> places(rows * width), slots(rows), order(rows), owners(rows), trees(rows), nothing(rows);
  std::iota(order.begin(), order.end(), 0);
  Frontier frontier(rows, hidden);

  product(team, draft.head, g.states, nullptr, logits.get(), g.sequences);
  team.run(g.sequences, [&](int64_t s) {
    likeliest(&logits[s * size], size, width, g.limits[s], &scores[s * width], &places[s * width]);
  });
  for (int64_t r = 0; r < rows; r++) {
    const int64_t s = r / width, c = r % width, at = s * total + c;
    owners[r] = s, trees[r] = g.starts[s];
    g.token_ids[at] = frontier.token_ids[r] = draft.vocabulary[places[r]];
    g.parents[at] = -1;
    g.scores[at] = frontier.scores[r] = scores[r];
    frontier.indices[r] = c, frontier.masks[r] = (int64_t)((uint64_t)1 << c);
    std::memcpy(&frontier.states[r * hidden], g.states + s * hidden, sizeof(float) * hidden);
  }
  for (int64_t run = 1; run < g.levels; run++) {
    over_rows(team, rows, [&](int64_t r) {
      const int64_t s = owners[r], angles = ((run - 1) * g.sequences + s) * dim;
      float* own = &joined[r * 2 * hidden];
      rms_norm(draft.embeddings + frontier.token_ids[r] * hidden, draft.embed_norm, draft.embed_eps, own, hidden);
      rms_norm(&frontier.states[r * hidden], draft.state_norm, draft.state_eps, own + hidden, hidden);
      std::memcpy(&cos[r * dim], g.cos + angles, sizeof(float) * dim);
      std::memcpy(&sin[r * dim], g.sin + angles, sizeof(float) * dim);
      slots[r] = g.table[s * g.stride + g.starts[s] + (run - 1) * width + r % width];
    });
    product(team, draft.fc, joined.get(), nullptr, inputs.get(), rows);
    const Seen seen{order.data(), owners.data(), nothing.data(), trees.data(), frontier.masks.data(), g.table, g.stride, rows};
    run_layer(workers, *draft.layer, inputs.get(), out.get(), rows, cos.get(), sin.get(), g.keys, g.values, slots.data(), seen);
    product(team, draft.head, out.get(), nullptr, logits.get(), rows);
    team.run(rows, [&](int64_t r) {
      likeliest(&logits[r * size], size, width, g.limits[owners[r]], &scores[r * width], &places[r * width]);
    });
    const int64_t first = width + (run - 1) * width * width;
    for (int64_t r = 0; r < rows; r++)
      for (int64_t c = 0; c < width; c++) {
        const int64_t at = owners[r] * total + first + r % width * width + c;
        g.token_ids[at] = draft.vocabulary[places[r * width + c]];
        g.parents[at] = frontier.indices[r];
        g.scores[at] = frontier.scores[r] + scores[r * width + c];
      }
    if (run + 1 < g.levels) go_on(frontier, g, total, first, out.get(), hidden);
  }
}

}  // namespace
