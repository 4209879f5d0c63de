// What the training step asks of native code; float32 throughout. See mull/kernels/training.py.
#pragma once
#include <stddef.h>
#include <stdint.h>

// RMSNorm of rows [rows, width], `stride` floats apart: y = x / rms(x) * weight. Backward: with
// `upstream` (dense, as y) y becomes the gradient of x, and of_weight [width] that of the weight.
struct NormRows {
  const float* x;
  const float* weight;
  const float* upstream;
  float* inverse;  // [rows], 1 / rms: written forward, read backward
  float* y;
  float* of_weight;
  int64_t rows;
  int64_t width;
  int64_t stride;
  float eps;
  int32_t is_backward;
};

// inner = silu(gate) * up, [rows, width]; gate and up `stride` floats apart. Backward where
// `upstream` (as inner) is given: of_gate and of_up, `of_stride` apart, and inner once more if not
// null.
struct GatedRows {
  const float* gate;
  const float* up;
  const float* upstream;
  float* inner;
  float* of_gate;
  float* of_up;
  int64_t rows;
  int64_t width;
  int64_t stride;
  int64_t of_stride;
};

// out[t] = sum over r < each of weights[p] * table[p] with p = places[t, r]; weights null: 1.
struct SummedRows {
  const float* table;
  const int64_t* places;  // [rows, each]
  const float* weights;   // by row of the table, or null
  float* out;             // [rows, width]
  int64_t rows;
  int64_t each;
  int64_t width;
  int64_t table_rows;
};

// Backward of weighted sums: with u = upstream[places[s]], out[s] = weights[s] * u and
// of_weights[s] = u . table[s].
struct DealtRows {
  const float* upstream;  // [.., width]
  const int64_t* places;  // [rows]
  const float* weights;   // [rows]
  const float* table;     // [rows, width]
  float* out;             // [rows, width]
  float* of_weights;      // [rows]
  int64_t rows;
  int64_t width;
  int64_t upstream_rows;
};

// Causal attention inside sequences of packed rows: query [T, heads, key_dim], key [T, groups,
// key_dim], value [T, groups, value_dim], each with strides of its own; out [T', heads, value_dim]
// dense, of these sequences' rows alone, one sequence after another. Backward where `upstream` (as
// out) is given: of_query, of_key and of_value, dense, at the rows of these sequences. Both widths
// are multiples of 16.
struct ShortAttention {
  const float* query;
  const float* key;
  const float* value;
  const float* upstream;
  float* out;
  float* top;      // [T', heads]: largest score of a row, written forward, read backward
  float* inverse;  // [T', heads]: 1 / sum of exp(score - top)
  float* of_query;
  float* of_key;
  float* of_value;
  const int64_t* lengths;  // [sequences]
  const int64_t* firsts;   // [sequences]: first row in query, key and value
  int64_t sequences;
  int64_t heads;
  int64_t groups;
  int64_t key_dim;
  int64_t value_dim;
  int64_t query_stride;  // floats from a token to the next, and from a head to the next
  int64_t query_head_stride;
  int64_t key_stride;
  int64_t key_head_stride;
  int64_t value_stride;
  int64_t value_head_stride;
  float scale;
  int32_t unused;
};

// Of rows of logits [rows, vocabulary], divided by the temperature: log-probability of each target,
// entropy, log of the sum of exponentials, whether the target is the likeliest. Backward where
// `upstream` [rows] is given: then the logits become the gradient of sum(upstream * logprob), and
// of the outputs `normaliser` is read.
struct TokenRows {
  float* logits;
  const int64_t* targets;
  const float* upstream;
  float* logprob;
  float* entropy;
  float* normaliser;
  uint8_t* is_top;
  int64_t rows;
  int64_t vocabulary;
  float inverse_temperature;
  int32_t unused;
};
