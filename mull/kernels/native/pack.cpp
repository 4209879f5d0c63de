// Weights into the layout of Linear (see abi.h), and rows of them back to float32.
#include <math.h>
#include <string.h>

#include "abi.h"
#include "half.h"
#include "team.h"

namespace {

constexpr int64_t kPanel = 16;
constexpr int64_t kGroup = 32;

int64_t pairs_of(const Linear& linear) { return (linear.k + 63) / 64; }
int64_t pair_bytes(const Linear& linear) { return linear.kind == kQ8 ? 64 + 1024 : 128 + 512; }

template <class T>
void pack_floats(const Linear& linear, const T* from, T* to, int64_t per_lane) {
  // per_lane inputs of one output lie side by side: 1 of float32, 2 of bfloat16
  for (int64_t lane = 0; lane < kPanel; ++lane)
    for (int64_t i = 0; i < (linear.k + per_lane - 1) / per_lane * per_lane; ++i)
      to[(i / per_lane * kPanel + lane) * per_lane + i % per_lane] =
          lane < linear.n && i < linear.k ? from[lane * linear.k + i] : T{};
}

struct Quantised {
  uint16_t scale;
  uint16_t minimum;  // q4
  uint8_t values[kGroup];
};

// Eight floats at once in plain code: packing looks at every weight dozens of times.
typedef float Eight __attribute__((vector_size(32), aligned(4), may_alias));

inline Eight between(Eight x, float least, float most) {
  x = x > least ? x : least - Eight{};
  return x < most ? x : most - Eight{};
}

// To the nearest whole number, halves to even; for |x| < 2^22.
inline Eight nearest(Eight x) { return x + 12582912.0f - 12582912.0f; }

inline float sum(Eight x) {
  float total = 0.0f;
  for (int i = 0; i < 8; ++i) total += x[i];
  return total;
}

inline Eight eight(const float* x) { return *reinterpret_cast<const Eight*>(x); }

// x rounded to steps of `scale` from `start`: their numbers, and the sum of squared errors.
float round_to(const float* x, float scale, float start, float least, float most, float* steps) {
  const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
  Eight total{};
  for (int64_t i = 0; i < kGroup; i += 8) {
    const Eight v = eight(x + i);
    const Eight number = nearest(between((v - start) * inverse, least, most));
    const Eight off = number * scale + start - v;
    *reinterpret_cast<Eight*>(steps + i) = number;
    total += off * off;
  }
  return sum(total);
}

// Symmetric, zero point 128. The end of the range that lies further out sets the least scale; of
// it and some slightly larger ones the best is taken. Where the weights have few distinct values
// (they come from four bits), one often meets them all.
Quantised quantise_q8(const float* x) {
  float least = 0.0f, most = 0.0f;
  for (int64_t i = 0; i < kGroup; ++i) {
    least = x[i] < least ? x[i] : least;
    most = x[i] > most ? x[i] : most;
  }
  const float base = -least / 128.0f > most / 127.0f ? -least / 128.0f : most / 127.0f;
  Quantised q{};
  float steps[kGroup], best = INFINITY;
  for (int larger = 0; larger < 16; ++larger) {
    const uint16_t half = to_half(base * (1.0f + 0.004f * static_cast<float>(larger)));
    const float error = round_to(x, from_half(half), 0.0f, -128.0f, 127.0f, steps);
    if (error < best) best = error, q.scale = half;
  }
  round_to(x, from_half(q.scale), 0.0f, -128.0f, 127.0f, steps);
  for (int64_t i = 0; i < kGroup; ++i) q.values[i] = static_cast<uint8_t>(128.0f + steps[i]);
  return q;
}

// The nearest of 16 steps from `minimum`; returns the sum of squared errors.
float round_q4(const float* x, float scale, float minimum, Quantised* q) {
  float steps[kGroup];
  q->scale = to_half(scale);
  q->minimum = to_half(minimum);
  const float error =
      round_to(x, from_half(q->scale), from_half(q->minimum), 0.0f, 15.0f, steps);
  for (int64_t i = 0; i < kGroup; ++i) q->values[i] = static_cast<uint8_t>(steps[i]);
  return error;
}

// Scale and minimum that fit the chosen steps best (least squares).
bool fit_q4(const float* x, const Quantised& q, float* scale, float* minimum) {
  float sum_q = 0.0f, sum_qq = 0.0f, sum_x = 0.0f, sum_qx = 0.0f;
  for (int64_t i = 0; i < kGroup; ++i) {
    const float steps = q.values[i];
    sum_q += steps, sum_qq += steps * steps, sum_x += x[i], sum_qx += steps * x[i];
  }
  const float spread = kGroup * sum_qq - sum_q * sum_q;
  if (!(spread > 0.0f)) return false;
  *scale = (kGroup * sum_qx - sum_q * sum_x) / spread;
  *minimum = (sum_x - *scale * sum_q) / kGroup;
  return *scale > 0.0f;
}

// Starts from ranges drawn in a little, fits each, and keeps the least squared error.
Quantised quantise_q4(const float* x) {
  float least = x[0], most = x[0];
  for (int64_t i = 1; i < kGroup; ++i) least = fminf(least, x[i]), most = fmaxf(most, x[i]);
  const float range = most - least;
  Quantised best{};
  float best_error = round_q4(x, range / 15.0f, least, &best);
  // The grid that the weights already lie on (a file of Q4_1) is kept as it is.
  const float exact = 1e-6f * range * range;
  for (int narrower = 0; narrower < 4 && best_error > exact; ++narrower) {
    Quantised q{};
    const float cut = 0.025f * static_cast<float>(narrower) * range;
    float scale = (range - 2.0f * cut) / 15.0f, minimum = least + cut;
    round_q4(x, scale, minimum, &q);
    for (int round = 0; round < 2 && fit_q4(x, q, &scale, &minimum); ++round) {
      const float error = round_q4(x, scale, minimum, &q);
      if (error < best_error) best_error = error, best = q;
    }
  }
  return best;
}

// One panel's pair of groups: `x` [16][64], zeros beyond the weights.
void pack_pair(const Linear& linear, const float (*x)[2 * kGroup], uint8_t* to) {
  const bool is_q8 = linear.kind == kQ8;
  uint16_t* scales = reinterpret_cast<uint16_t*>(to);
  uint8_t* bytes = to + (is_q8 ? 64 : 128);
  if (!is_q8) memset(bytes, 0, 512);
  for (int64_t half = 0; half < 2; ++half)
    for (int64_t lane = 0; lane < kPanel; ++lane) {
      const float* group = x[lane] + half * kGroup;
      const Quantised q = is_q8 ? quantise_q8(group) : quantise_q4(group);
      scales[half * kPanel + lane] = q.scale;
      if (!is_q8) scales[(2 + half) * kPanel + lane] = q.minimum;
      for (int64_t i = 0; i < kGroup; ++i) {
        const int64_t at = i / 4 * 64 + lane * 4 + i % 4;
        if (is_q8)
          bytes[half * 512 + at] = q.values[i];
        else
          bytes[at] = static_cast<uint8_t>(bytes[at] | q.values[i] << (4 * half));
      }
    }
}

void pack_quantised(const Linear& linear, const float* from, int64_t panel, uint8_t* to) {
  float x[kPanel][2 * kGroup];
  for (int64_t pair = 0; pair < pairs_of(linear); ++pair) {
    for (int64_t lane = 0; lane < kPanel; ++lane)
      for (int64_t i = 0; i < 2 * kGroup; ++i) {
        const int64_t row = panel * kPanel + lane, column = pair * 2 * kGroup + i;
        x[lane][i] = row < linear.n && column < linear.k ? from[row * linear.k + column] : 0.0f;
      }
    pack_pair(linear, x, to + pair * pair_bytes(linear));
  }
}

void unpack_quantised(const Linear& linear, int64_t row, float* to) {
  const bool is_q8 = linear.kind == kQ8;
  const uint8_t* base = static_cast<const uint8_t*>(linear.packed) +
                        row / kPanel * pairs_of(linear) * pair_bytes(linear);
  const int64_t lane = row % kPanel;
  for (int64_t i = 0; i < linear.k; ++i) {
    const uint8_t* block = base + i / 64 * pair_bytes(linear);
    const uint16_t* scales = reinterpret_cast<const uint16_t*>(block);
    const int64_t half = i % 64 / kGroup, at = i % kGroup / 4 * 64 + lane * 4 + i % 4;
    const float scale = from_half(scales[half * kPanel + lane]);
    if (is_q8)
      to[i] = scale * static_cast<float>(block[64 + half * 512 + at] - 128);
    else
      to[i] = scale * static_cast<float>(block[128 + at] >> (4 * half) & 15) +
              from_half(scales[(2 + half) * kPanel + lane]);
  }
}

}  // namespace

// Row-major weights [n, k] into panels. Rows are of the linear's kind, of float32 for q8 and q4.
MULL_EXPORT void mull_pack(const Linear* linear, const void* weights, void* packed, int32_t threads) {
  const int64_t k = linear->k, panels = (linear->n + kPanel - 1) / kPanel;
  run_team(threads, [&](const Team& team) {
    for (int64_t p = team.first(panels); p < team.last(panels); ++p) {
      Linear rest = *linear;
      rest.n -= p * kPanel;
      if (linear->kind == kFloat32)
        pack_floats(rest, static_cast<const float*>(weights) + p * kPanel * k,
                    static_cast<float*>(packed) + p * kPanel * k, 1);
      else if (linear->kind == kBFloat16)
        pack_floats(rest, static_cast<const uint16_t*>(weights) + p * kPanel * k,
                    static_cast<uint16_t*>(packed) + p * kPanel * ((k + 1) / 2 * 2), 2);
      else
        pack_quantised(*linear, static_cast<const float*>(weights), p,
                       static_cast<uint8_t*>(packed) + p * pairs_of(*linear) * pair_bytes(*linear));
    }
  });
}

void unpack_row(const Linear& linear, int64_t row, float* to) {
  const int64_t k = linear.k, panel = row / kPanel, lane = row % kPanel;
  if (linear.kind == kFloat32) {
    const float* from = static_cast<const float*>(linear.packed) + panel * k * 16 + lane;
    for (int64_t i = 0; i < k; ++i) to[i] = from[i * 16];
  } else if (linear.kind == kBFloat16) {
    const uint16_t* from =
        static_cast<const uint16_t*>(linear.packed) + panel * ((k + 1) / 2) * 32 + lane * 2;
    for (int64_t i = 0; i < k; ++i) {
      const uint32_t bits = static_cast<uint32_t>(from[i / 2 * 32 + i % 2]) << 16;
      memcpy(to + i, &bits, 4);
    }
  } else {
    unpack_quantised(linear, row, to);
  }
}

// Rows `ids` (checked by the caller) of the packed weights as float32 [count, k].
MULL_EXPORT void mull_rows(const Linear* linear, const int64_t* ids, int64_t count, float* out) {
  for (int64_t r = 0; r < count; ++r) unpack_row(*linear, ids[r], out + r * linear->k);
}
