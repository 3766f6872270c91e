// Products and attention for packed rows of few tokens, where a CPU is bound by reading weights and KV.
//
// Arithmetic is float32 throughout. Weights are stored as float32, float16 or bfloat16, whichever represents them
// exactly, in blocks of WIDE outputs: block b holds, for every input k, the weights of the WIDE outputs from
// b * WIDE on (padded with zeros). Every output is summed over k in order, by itself, so a row's result does not
// depend on the number of rows in the batch: a token verified in a tree has the same logits as when decoded alone.
//
// Plain C interface without torch headers, compiled in a few seconds by engine/kernels/build.py.

#include <cstdint>
#include <mutex>

#include "grow.h"
#include "layers.h"

namespace {

// Locks the workers for one call, in the caller's thread.
struct Call {
  std::lock_guard<std::mutex> alone;
  NoSubnormals here;
  explicit Call(Workers* workers) : alone(workers->one_at_a_time) {}
};

}  // namespace

extern "C" {

int64_t specvlm_wide() { return WIDE; }

Workers* specvlm_workers(int threads) { return new Workers{{threads, no_subnormals}, {}, {}, {}}; }

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
  attend(workers->team, q, q_row, q_head, keys, values, out, *seen, *heads, workers->starts);
}

// Runs layers one after the other over rows [rows, hidden], all of which are in each layer's `seen`. cos, sin
// [rows, dim]; keys, values: the cache of each layer; slots: where all layers write.
void specvlm_layers(Workers* workers, const Layer* const* layers, int64_t count, const float* x, float* out,
                    int64_t rows, const float* cos, const float* sin, float* const* keys, float* const* values,
                    const int64_t* slots, const Seen* const* seen) {
  Call call(workers);
  for (int64_t i = 0; i < count; i++) {
    run_layer(*workers, *layers[i], x, out, rows, cos, sin, keys[i], values[i], slots, *seen[i]);
    x = out;  // a layer adds to its input elementwise, so it can work in place
  }
}

// Fills in the candidates of `growth` and the KV of its nodes.
void specvlm_grow(Workers* workers, const Draft* draft, const Growth* growth) {
  Call call(workers);
  grow(*workers, *draft, *growth);
}
}
