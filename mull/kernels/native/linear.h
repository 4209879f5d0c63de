// Products with packed weights. For one (row, output) the sum over k runs in one order whatever the
// number of rows, the tile it falls in or the number of threads: results do not depend on the batch.

#if MULL_VECTOR_BYTES == 64 || defined(__aarch64__)
constexpr int kAccumulators = 24;  // vectors of sums held in registers
#else
constexpr int kAccumulators = 12;
#endif

// The form in which a product reads its activations: float32, float32 rounded to bfloat16,
// bfloat16, or groups of whole numbers (see quantised.h).
enum Form : int32_t { kPlain = 0, kRounded = 1, kPairs = 2, kQuantised = 3 };

MULL_INLINE int32_t form_of(const Linear& linear) {
  if (linear.kind == kFloat32) return kPlain;
  if (linear.kind == kQ8 || linear.kind == kQ4) return kQuantised;
#ifdef MULL_HAS_DPBF16
  return kPairs;
#else
  return kRounded;
#endif
}

MULL_INLINE int64_t panels_of(const Linear& linear) { return ceil_div(linear.n, kPanel); }
// Elements of one row of activations; those beyond the width are zeros.
MULL_INLINE int64_t padded(int64_t k) { return round_up(k, 32); }
MULL_INLINE int64_t row_bytes_of(int32_t form, int64_t width) {
  if (form == kQuantised) return groups_of(width) * static_cast<int64_t>(sizeof(Group));
  return padded(width) * (form == kPairs ? 2 : 4);
}
MULL_INLINE void* form_row(void* base, int32_t form, int64_t width, int64_t row) {
  return static_cast<char*>(base) + row * row_bytes_of(form, width);
}
MULL_INLINE int64_t panel_bytes(const Linear& linear) {
  if (linear.kind == kFloat32) return linear.k * 64;
  if (linear.kind == kBFloat16) return (linear.k + 1) / 2 * 64;
  return groups_of(linear.k) / 2 * pair_bytes(linear.kind);
}

// Of every form but kQuantised, whose values come by the group.
MULL_INLINE void store_form(void* row, int32_t form, int64_t i, vf v) {
  if (form == kPlain) store(static_cast<float*>(row) + i, v);
  if (form == kRounded) store(static_cast<float*>(row) + i, (vf)round_bits(v));
  if (form == kPairs) store(static_cast<uint16_t*>(row) + i, v);
}

MULL_INLINE void store_form_one(void* row, int32_t form, int64_t i, float v) {
  if (form == kPlain) static_cast<float*>(row)[i] = v;
  if (form == kRounded) static_cast<float*>(row)[i] = to_float(to_bfloat16(v));
  if (form == kPairs) static_cast<uint16_t*>(row)[i] = to_bfloat16(v);
}

// Values [first, first + count) of a row; for kQuantised `first` is a multiple of 32.
static void store_span(const float* x, int64_t first, int64_t count, void* row, int32_t form) {
  if (form == kQuantised) return quantise_span(x, first, count, row);
  int64_t i = 0;
  for (; i + W <= count; i += W) store_form(row, form, first + i, load(x + i));
  for (; i < count; ++i) store_form_one(row, form, first + i, x[i]);
}

MULL_INLINE void clear_padding(void* row, int32_t form, int64_t width) {
  if (form == kQuantised) {
    Group* groups = static_cast<Group*>(row);
    for (int64_t i = ceil_div(width, kGroup); i < groups_of(width); ++i) groups[i] = Group{};
  } else {
    for (int64_t i = width; i < padded(width); ++i) store_form_one(row, form, i, 0.0f);
  }
}

static void to_form(const float* x, int64_t width, void* row, int32_t form) {
  store_span(x, 0, width, row, form);
  clear_padding(row, form, width);
}

// Asks for the panels of the next strip, which lie after each other from `ahead`, so that memory
// works while this strip is multiplied.
template <int P, bool AHEAD>
MULL_INLINE void look_ahead(const char* ahead, int64_t i) {
  if constexpr (AHEAD)
    for (int p = 0; p < P; ++p) __builtin_prefetch(ahead + (i * P + p) * 64, 0, 2);
}

// acc[m][v] += sum over k of x[m][k] * w[k][16 outputs], P panels wide.
template <int M, int P, int FORM, bool AHEAD>
MULL_INLINE void accumulate(vf (&acc)[M][P * kVectors], const char* x, int64_t row_bytes,
                            const char* w, int64_t w_bytes, int64_t k, const char* ahead) {
  if constexpr (FORM == kPlain) {
    for (int64_t i = 0; i < k; ++i) {
      look_ahead<P, AHEAD>(ahead, i);
      vf weights[P * kVectors];
      for (int p = 0; p < P; ++p)
        for (int v = 0; v < kVectors; ++v)
          weights[p * kVectors + v] =
              load(reinterpret_cast<const float*>(w + p * w_bytes + i * 64) + v * W);
      for (int m = 0; m < M; ++m) {
        float a = reinterpret_cast<const float*>(x + m * row_bytes)[i];
        for (int j = 0; j < P * kVectors; ++j) acc[m][j] += a * weights[j];
      }
    }
  } else if constexpr (FORM == kRounded) {
    for (int64_t i = 0; i < (k + 1) / 2; ++i) {
      look_ahead<P, AHEAD>(ahead, i);
      for (int odd = 0; odd < 2; ++odd) {
        vf weights[P * kVectors];
        for (int p = 0; p < P; ++p)
          for (int v = 0; v < kVectors; ++v) {
            vu bits = load_bits(w + p * w_bytes + i * 64 + v * W * 4);
            weights[p * kVectors + v] = (vf)(odd ? bits & 0xffff0000u : bits << 16);
          }
        for (int m = 0; m < M; ++m) {
          float a = reinterpret_cast<const float*>(x + m * row_bytes)[2 * i + odd];
          for (int j = 0; j < P * kVectors; ++j) acc[m][j] += a * weights[j];
        }
      }
    }
  } else {
#ifdef MULL_HAS_DPBF16
    for (int64_t i = 0; i < (k + 1) / 2; ++i) {
      look_ahead<P, AHEAD>(ahead, i);
      __m512bh weights[P];
      for (int p = 0; p < P; ++p)
        weights[p] = (__m512bh)_mm512_loadu_si512(w + p * w_bytes + i * 64);
      for (int m = 0; m < M; ++m) {
        int32_t pair;
        __builtin_memcpy(&pair, x + m * row_bytes + i * 4, 4);
        __m512bh a = (__m512bh)_mm512_set1_epi32(pair);
        for (int p = 0; p < P; ++p) acc[m][p] = (vf)_mm512_dpbf16_ps((__m512)acc[m][p], a, weights[p]);
      }
    }
#endif
  }
}

// Where a product leaves its result, and how.
enum Mode { kStore, kAdd };

struct Target {
  float* y;
  int64_t stride;
  Mode mode;
  Target row(int64_t r) const { return {y + r * stride, stride, mode}; }
};

template <int M, int P>
MULL_INLINE void finish_tile(const vf (&acc)[M][P * kVectors], const Linear& linear, int64_t panel,
                             const Target& target) {
  for (int p = 0; p < P; ++p) {
    const int64_t first = (panel + p) * kPanel;
    const int64_t valid = low(static_cast<int64_t>(kPanel), linear.n - first);
    float bias[kPanel] = {};
    if (linear.bias)
      for (int64_t i = 0; i < valid; ++i) bias[i] = linear.bias[first + i];
#pragma GCC unroll 24
    for (int m = 0; m < M; ++m) {
      float* y = target.y + m * target.stride + first;
      if (valid == kPanel) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
          vf value = acc[m][p * kVectors + v] + load(bias + v * W);
          if (target.mode == kAdd) value += load(y + v * W);
          store(y + v * W, value);
        }
      } else {
        float values[kPanel];
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v)
          store(values + v * W, acc[m][p * kVectors + v] + load(bias + v * W));
        for (int64_t i = 0; i < valid; ++i)
          y[i] = target.mode == kAdd ? y[i] + values[i] : values[i];
      }
    }
  }
}

template <int M, int P, int FORM, bool AHEAD>
static void tile(const Linear& linear, const char* x, int64_t row_bytes, int64_t panel,
                 const char* ahead, const Target& target) {
  vf acc[M][P * kVectors];
#pragma GCC unroll 24
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < P * kVectors; ++v) acc[m][v] = vf{};
  const int64_t w_bytes = panel_bytes(linear);
  const char* w = static_cast<const char*>(linear.packed) + panel * w_bytes;
  accumulate<M, P, FORM, AHEAD>(acc, x, row_bytes, w, w_bytes, linear.k, ahead);
  finish_tile<M, P>(acc, linear, panel, target);
}

template <int M, int P, int FORM, bool AHEAD>
static void tile_of(int64_t rows, const Linear& linear, const char* x, int64_t row_bytes,
                    int64_t panel, const char* ahead, const Target& target) {
  if (rows == M) return tile<M, P, FORM, AHEAD>(linear, x, row_bytes, panel, ahead, target);
  if constexpr (M > 1)
    tile_of<M - 1, P, FORM, AHEAD>(rows, linear, x, row_bytes, panel, ahead, target);
}

// P panels side by side over all rows, in row tiles of nearly equal height.
template <int P, int FORM>
static void strip(const Linear& linear, const char* x, int64_t row_bytes, int64_t rows,
                  int64_t panel, const char* ahead, const Target& target) {
  constexpr int kRows = kAccumulators / (P * kVectors);
  const int64_t tiles = ceil_div(rows, kRows);
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t r = rows * t / tiles, count = rows * (t + 1) / tiles - r;
    const char* xr = x + r * row_bytes;
    if (t == 0)
      tile_of<kRows, P, FORM, true>(count, linear, xr, row_bytes, panel, ahead, target);
    else
      tile_of<kRows, P, FORM, false>(count, linear, xr, row_bytes, panel, ahead, target.row(r));
  }
}

// Sums over pairs of groups [first, last) of an M x P tile. `partial` holds the sums of the pairs
// before `first`, and takes these unless they are the last.
template <int M, int P, Weights KIND>
static void quantised_tile(const Linear& linear, const char* x, int64_t row_bytes,
                           const Strip& strip, int64_t panel, int64_t first, int64_t last,
                           float* partial, const char* ahead, const Target& target) {
  vf acc[M][P * kVectors];
#pragma GCC unroll 24
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < P * kVectors; ++v)
      acc[m][v] = first > 0 ? load(partial + m * P * kPanel + v * W) : vf{};
  accumulate_quantised<M, P, KIND>(acc, x, row_bytes, strip, first, last, ahead);
  if (last == groups_of(linear.k) / 2) return finish_tile<M, P>(acc, linear, panel, target);
#pragma GCC unroll 24
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < P * kVectors; ++v) store(partial + m * P * kPanel + v * W, acc[m][v]);
}

template <int M, int P, Weights KIND>
static void quantised_tile_of(int64_t rows, const Linear& linear, const char* x, int64_t row_bytes,
                              const Strip& strip, int64_t panel, int64_t first, int64_t last,
                              float* partial, const char* ahead, const Target& target) {
  if (rows == M)
    return quantised_tile<M, P, KIND>(linear, x, row_bytes, strip, panel, first, last, partial,
                                      ahead, target);
  if constexpr (M > 1)
    quantised_tile_of<M - 1, P, KIND>(rows, linear, x, row_bytes, strip, panel, first, last,
                                      partial, ahead, target);
}

constexpr int kQuantisedTile = kAccumulators / 2;  // as many sums again are whole numbers
// Rows of a tile. Bytes of a panel alone are the rest of an odd number of them: not worth tall
// tiles. Nibbles of one panel are: the taller the tile, the less often they are unpacked. Narrow sums
// take all registers for whole numbers, and floats wait in memory: they are needed once a group.
template <int P, Weights KIND>
constexpr int kTallest =
    kIsNarrow<KIND> && P == 1 ? 6
    : P == 1 && KIND != kNibbles && kQuantisedTile / kVectors > 4 ? 4 : kQuantisedTile / (P * kVectors);
constexpr int64_t kRowBlock = 128;  // rows of activations that stay in the L2 cache
constexpr int64_t kSpreadPairs = 32;
// Up to so many rows nibbles are unpacked for every tile anew.
constexpr int64_t kUnpackedEachTime = kVectors == 1 ? 16 : 12;

template <int P, Weights KIND>
static void quantised_rows(const Linear& linear, const char* x, int64_t row_bytes, int64_t rows,
                           const Strip& strip, int64_t panel, int64_t first, int64_t last,
                           float* partial, const char* ahead, const Target& target) {
  constexpr int kRows = kTallest<P, KIND>;
  const int64_t tiles = ceil_div(rows, kRows);
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t r = rows * t / tiles, count = rows * (t + 1) / tiles - r;
    const char* xr = x + r * row_bytes;
    float* sums = partial + r * P * kPanel;
    // Measured at one row: a decode step on Zen 4 is a sixth shorter for it. A Xeon that reads four
    // panels at once is a tenth slower for it there, but needs it with one or two.
    quantised_tile_of<kRows, P, KIND>(count, linear, xr, row_bytes, strip, panel, first, last, sums,
                                      t == 0 ? ahead : nullptr, target.row(r));
  }
}

// Many rows: nibbles are spread to bytes once for all of them.
template <int P>
static __attribute__((noinline)) void spread_strip(const Linear& linear, const char* x,
                                                   int64_t row_bytes, int64_t rows, Strip strip,
                                                   int64_t panel, const char* ahead,
                                                   const Target& target) {
  alignas(64) char spread[P * kSpreadPairs * 1024];
  alignas(64) float partial[kRowBlock * P * kPanel];
  strip.spread_panel_bytes = kSpreadPairs * 1024;
  const int64_t pairs = groups_of(linear.k) / 2;
  for (int64_t first = 0; first < pairs; first += kSpreadPairs) {
    const int64_t last = low(first + kSpreadPairs, pairs);
    spread_nibbles<P>(strip, first, last, spread);
    strip.spread = spread - first * 1024;
    quantised_rows<P, kUnpacked>(linear, x, row_bytes, rows, strip, panel, first, last, partial,
                                 ahead + first * P * pair_bytes(kQ4), target);
  }
}

template <int P>
static void quantised_strip(const Linear& linear, const char* x, int64_t row_bytes, int64_t rows,
                            int64_t panel, const char* ahead, const Target& target) {
  const int64_t bytes = panel_bytes(linear), pairs = groups_of(linear.k) / 2;
  const Strip strip{static_cast<const char*>(linear.packed) + panel * bytes, bytes, nullptr, 0};
  if (linear.kind == kQ8)
    quantised_rows<P, kBytes>(linear, x, row_bytes, rows, strip, panel, 0, pairs, nullptr, ahead,
                              target);
  else if (rows <= kUnpackedEachTime)
    quantised_rows<P, kNibbles>(linear, x, row_bytes, rows, strip, panel, 0, pairs, nullptr, ahead,
                                target);
  else
    spread_strip<P>(linear, x, row_bytes, rows, strip, panel, ahead, target);
}

template <int P, int FORM>
MULL_INLINE void any_strip(const Linear& linear, const char* x, int64_t row_bytes, int64_t rows,
                           int64_t panel, const char* ahead, const Target& target) {
  if constexpr (FORM == kQuantised)
    quantised_strip<P>(linear, x, row_bytes, rows, panel, ahead, target);
  else
    strip<P, FORM>(linear, x, row_bytes, rows, panel, ahead, target);
}

// Whether two panels side by side are better than one.
MULL_INLINE bool is_wide(const Linear& linear, int64_t rows, int64_t tile) {
  if (rows * 2 * kVectors <= tile) return true;
  return kVectors == 1 && (linear.kind != kQ4 || rows > kUnpackedEachTime);
}

template <int FORM>
static void product_form(const Linear& linear, const char* x, int64_t row_bytes, int64_t rows,
                         const Target& target, int64_t first, int64_t last, const char* next) {
  // What follows a strip of `count` panels: the next strip, or the weights multiplied after these.
  const char* weights = static_cast<const char*>(linear.packed);
  auto after = [&](int64_t panel, int64_t count) {
    return panel + count < last || !next ? weights + (panel + count) * panel_bytes(linear) : next;
  };
  constexpr int64_t kTile = FORM == kQuantised ? kQuantisedTile : kAccumulators;
  constexpr int64_t kBlockBytes = 512 * 1024;  // rows of activations that stay in the L2 cache
  const int64_t block =
      FORM == kQuantised ? kRowBlock : high(static_cast<int64_t>(48), kBlockBytes / row_bytes / 12 * 12);
  for (int64_t r = 0; r < rows; r += block) {
    const int64_t count = low(block, rows - r);
    const char* xr = x + r * row_bytes;
    const Target yr = target.row(r);
    int64_t panel = first;
    // Few rows: several panels at once, so that memory has several streams to fetch from.
    if constexpr (4 * kVectors <= kTile)
      if (count * 4 * kVectors <= kTile)
        for (; panel + 4 <= last; panel += 4)
          any_strip<4, FORM>(linear, xr, row_bytes, count, panel, after(panel, 4), yr);
    if constexpr (2 * kVectors <= kTile)
      if (is_wide(linear, count, kTile))
        for (; panel + 2 <= last; panel += 2)
          any_strip<2, FORM>(linear, xr, row_bytes, count, panel, after(panel, 2), yr);
    for (; panel < last; ++panel)
      any_strip<1, FORM>(linear, xr, row_bytes, count, panel, after(panel, 1), yr);
  }
}

// Panels [first, last) of y (=|+=) x @ weights.T + bias; x in the form of `linear`, whole rows.
// `next`: weights multiplied after these, or null.
static void product_panels(const Linear& linear, const void* x, int64_t rows, float* y,
                           int64_t y_stride, Mode mode, int64_t first, int64_t last,
                           const char* next = nullptr) {
  const int32_t form = form_of(linear);
  const int64_t bytes = row_bytes_of(form, linear.k);
  const char* from = static_cast<const char*>(x);
  const Target target{y, y_stride, mode};
  if (form == kPlain) product_form<kPlain>(linear, from, bytes, rows, target, first, last, next);
  if (form == kRounded) product_form<kRounded>(linear, from, bytes, rows, target, first, last, next);
  if (form == kPairs) product_form<kPairs>(linear, from, bytes, rows, target, first, last, next);
  if (form == kQuantised)
    product_form<kQuantised>(linear, from, bytes, rows, target, first, last, next);
}

// Where the part of `linear` begins that this thread multiplies.
MULL_INLINE const char* own_part(const Linear& linear, const Team& team) {
  return static_cast<const char*>(linear.packed) + team.first(panels_of(linear)) * panel_bytes(linear);
}

// Meets the team; a thread that waits asks for its part of what is multiplied next, beyond the strip
// that the product before has asked for.
constexpr int64_t kWaitingBytes = 49152;

MULL_INLINE void meet(const Team& team, const char* own, const Linear& next) {
  team.barrier(own + 4 * panel_bytes(next), kWaitingBytes);
}

MULL_INLINE void meet(const Team& team, const Linear* next) {
  if (!next) return team.barrier();
  meet(team, own_part(*next, team), *next);
}

// This thread's panels. `next`: weights multiplied after these, or null.
static void product(const Linear& linear, const void* x, int64_t rows, float* y, int64_t y_stride,
                    Mode mode, const char* next, const Team& team) {
  const int64_t panels = panels_of(linear);
  product_panels(linear, x, rows, y, y_stride, mode, team.first(panels), team.last(panels), next);
}

static size_t linear_scratch(const Linear* linear, int64_t rows) {
  return static_cast<size_t>(rows * row_bytes_of(form_of(*linear), linear->k));
}

static void linear_team(const Linear* linear, const float* x, int64_t rows, float* y, char* scratch,
                        const Team& team) {
  const int32_t form = form_of(*linear);
  for (int64_t r = team.first(rows); r < team.last(rows); ++r)
    to_form(x + r * linear->k, linear->k, form_row(scratch, form, linear->k, r), form);
  team.barrier();
  product(*linear, scratch, rows, y, linear->n, kStore, nullptr, team);
}
