// Attention of few rows over paged KV.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "products.h"

namespace {

constexpr int64_t TOGETHER = 5;  // rows of a sequence that attend together

// The slots that M rows see. Row row[i] belongs to sequence seq[i] and sees that sequence's logical slots first[i] to
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

// Turns scores into weights that sum to 1. The padding up to a multiple of LANES is overwritten and zeroed.
inline void softmax(float* scores, int64_t length, float scale) {
  const float none = -std::numeric_limits<float>::infinity();
  for (int64_t i = length; i % LANES; i++) scores[i] = none;
  V most = splat(none);
  for (int64_t i = 0; i < length; i += LANES) most = load(scores + i) > most ? load(scores + i) : most;
  float top = none;
  for (int64_t j = 0; j < LANES; j++) top = most[j] > top ? most[j] : top;
  V all{};
  for (int64_t i = 0; i < length; i += LANES) {
    V e = vexp((load(scores + i) - top) * scale);
    for (int64_t j = length - i; j < LANES; j++) e[j] = 0.0f;
    all += e;
    std::memcpy(scores + i, &e, sizeof e);
  }
  const V norm = splat(1.0f / total(all));
  for (int64_t i = 0; i < length; i += LANES) put(scores + i, load(scores + i) * norm, LANES);
}

// Rotates queries and keys of qkv [rows, heads + 2 kv_heads, dim] in place by cos and sin [rows, dim] (the halves of a
// head are its real and imaginary parts), and writes keys and values to their slots of the cache.
inline void rotate_and_write(Team& team, float* qkv, const float* cos, const float* sin, float* keys, float* values,
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

// Rows `first` to `end` of one sequence with all query heads of KV head h, as two products: queries times keys, and
// weights times values. The strides of tokens and heads in q are given; out [N, heads, dim]; keys, values
// [slots, kv_heads, dim].
class Group {
 public:
  // Buffers that each thread keeps.
  struct Room {
    std::vector<int64_t> at;
    std::vector<float> query, block, scores;
  };

  Group(Room& room, const Seen& seen, const Heads& heads, int64_t first, int64_t end, int64_t h)
      : seen_(seen), first_(first), share_(heads.queries / heads.kv), queries_((end - first) * share_), dim_(heads.dim) {
    const int64_t slot = heads.kv * dim_, *slots = seen.table + seen.seq[first] * seen.stride;
    start_ = *std::min_element(seen.first + first, seen.first + end);
    const int64_t tree = seen.tree[first];
    for (int64_t r = first; r < end; r++) nodes_ |= (uint64_t)seen.mask[r];
    room.at.clear();
    for (int64_t i = start_; i < tree; i++) room.at.push_back(slots[i] * slot + h * dim_);
    prefix_ = (int64_t)room.at.size();
    for (uint64_t bits = nodes_; bits; bits &= bits - 1)
      room.at.push_back(slots[tree + __builtin_ctzll(bits)] * slot + h * dim_);
    keys_ = (int64_t)room.at.size();
    apart_ = (keys_ + WIDE - 1) / WIDE * WIDE + LANES;
    room.query.resize(queries_ * dim_);
    room.scores.resize(queries_ * apart_);
    room.block.resize(std::max(dim_, keys_) * WIDE);
    at_ = room.at.data();
    query_ = room.query.data(), scores_ = room.scores.data(), block_ = room.block.data();
  }

  void score(const float* q, int64_t q_row, int64_t q_head, const float* keys, const float* values, int64_t h) const {
    for (int64_t i = 0; i < queries_; i++)
      std::memcpy(&query_[i * dim_], q + seen_.row[first_ + i / share_] * q_row + (h * share_ + i % share_) * q_head,
                  sizeof(float) * dim_);
    for (int64_t i = 0; i < keys_; i += WIDE) {
      for (int64_t k = std::min(i + WIDE, keys_); k < std::min(i + 2 * WIDE, keys_); k++)
        for (int64_t d = 0; d < dim_; d += 16) __builtin_prefetch(keys + at_[k] + d);
      for (int64_t k = i; k < std::min(i + WIDE, keys_); k++)  // needed soon, and far larger than the L1 cache
        for (int64_t d = 0; d < dim_; d += 16) __builtin_prefetch(values + at_[k] + d, 0, 2);
      turn(keys, i);
      in_tiles(queries_, [&](auto count, int64_t r, int64_t) {
        V sum[count()][PARTS];
        tile<count()>(query_ + r * dim_, dim_, dim_, Packed<float>{block_, block_}, sum);
        for (int j = 0; j < count(); j++) std::memcpy(&scores_[(r + j) * apart_ + i], sum[j], sizeof sum[j]);
      });
    }
  }

  // Each row's weights are computed over only the slots that it sees, moved side by side, so that they do not depend
  // on where in the tree its ancestors are; all other slots get a weight of 0.
  void weigh(float scale) const {
    for (int64_t i = 0; i < queries_; i++) {
      const int64_t r = first_ + i / share_, before = seen_.first[r] - start_;
      const uint64_t own = (uint64_t)seen_.mask[r];
      float* const s = &scores_[i * apart_];
      int64_t last = prefix_, node = prefix_;
      for (uint64_t bits = nodes_; bits; bits &= bits - 1, node++)
        if (own & bits & -bits) s[last++] = s[node];
      softmax(s + before, last - before, scale);
      for (uint64_t left = nodes_; left;) {
        const uint64_t bit = (uint64_t)1 << (63 - __builtin_clzll(left));
        s[--node] = own & bit ? s[--last] : 0.0f;
        left &= ~bit;
      }
      std::fill(s, s + before, 0.0f);
    }
  }

  void sum(const float* values, float* out, int64_t heads, int64_t h) const {
    for (int64_t d = 0; d < dim_; d += WIDE) {
      const int64_t wide = std::min(WIDE, dim_ - d);
      if (wide == WIDE) {
        sum(Scattered{values + d, at_, keys_ - 1}, out + d, wide, heads, h);
      } else {  // must not read beyond a head's last element
        for (int64_t i = 0; i < keys_; i++) std::memcpy(block_ + i * WIDE, values + at_[i] + d, sizeof(float) * wide);
        sum(Packed<float>{block_, block_}, out + d, wide, heads, h);
      }
    }
  }

 private:
  template <class Values>
  void sum(const Values& values, float* out, int64_t wide, int64_t heads, int64_t h) const {
    in_tiles(queries_, [&](auto count, int64_t r, int64_t) {
      V sum[count()][PARTS];
      tile<count()>(scores_ + r * apart_, apart_, keys_, values, sum);
      for (int j = 0; j < count(); j++) {
        const int64_t row = seen_.row[first_ + (r + j) / share_], head = h * share_ + (r + j) % share_;
        for (int64_t p = 0, left = wide; p < PARTS && left > 0; p++, left -= LANES)
          put(out + (row * heads + head) * dim_ + p * LANES, sum[j][p], left);
      }
    });
  }

  // Transposes keys i to i + WIDE - 1 to a block [dim, WIDE]; the last key is repeated as padding.
  void turn(const float* keys, int64_t i) const {
    for (int64_t j = 0; j < WIDE; j += LANES) {
      const float* own[LANES];
      for (int64_t k = 0; k < LANES; k++) own[k] = keys + at_[std::min(i + j + k, keys_ - 1)];
      int64_t d = 0;
      for (; d + LANES <= dim_; d += LANES) {
        V square[LANES];
#pragma GCC unroll 16
        for (int64_t k = 0; k < LANES; k++) square[k] = load(own[k] + d);
        transpose(square);
#pragma GCC unroll 16
        for (int64_t k = 0; k < LANES; k++) put(&block_[(d + k) * WIDE + j], square[k], LANES);
      }
      for (; d < dim_; d++)
        for (int64_t k = 0; k < LANES; k++) block_[d * WIDE + j + k] = own[k][d];
    }
  }

  const Seen& seen_;
  int64_t first_, share_, queries_, dim_, start_, prefix_, keys_;
  int64_t apart_;  // stride between the scores of two queries
  uint64_t nodes_ = 0;
  const int64_t* at_;  // offsets of the keys that any of the rows sees
  float *query_, *block_, *scores_;
};

// Attention of all rows in `seen`. `starts`: buffer for the first row of each group.
inline void attend(Team& team, const float* q, int64_t q_row, int64_t q_head, const float* keys, const float* values,
            float* out, const Seen& seen, const Heads& heads, std::vector<int64_t>& starts) {
  starts.clear();
  for (int64_t r = 0; r < seen.rows; r++)
    if (starts.empty() || seen.seq[r] != seen.seq[r - 1] || r - starts.back() == TOGETHER) starts.push_back(r);
  const int64_t groups = (int64_t)starts.size();
  starts.push_back(seen.rows);
  team.run(groups * heads.kv, [&](int64_t i) {
    const int64_t g = i / heads.kv, h = i % heads.kv;
    static thread_local Group::Room room;
    const Group group(room, seen, heads, starts[g], starts[g + 1], h);
    group.score(q, q_row, q_head, keys, values, h);
    group.weigh(heads.scale);
    group.sum(values, out, heads.queries, h);
  });
}

}  // namespace
