// Products with packed weights. For one (row, output) the sum over k runs in one order whatever the
// number of rows, the tile it falls in or the number of threads: results do not depend on the batch.

constexpr int kPanel = 16;
constexpr int kVectors = kPanel / W;  // vectors across one panel
#if MULL_VECTOR_BYTES == 64 || defined(__aarch64__)
constexpr int kAccumulators = 24;
#else
constexpr int kAccumulators = 12;
#endif

MULL_INLINE int64_t panels_of(const Linear& linear) { return ceil_div(linear.n, kPanel); }
// Elements from one row of activations to the next; rows are padded with zeros up to it.
MULL_INLINE int64_t padded(int64_t k) { return round_up(k, 32); }
MULL_INLINE int64_t panel_bytes(const Linear& linear) {
  return linear.kind == kFloat32 ? linear.k * 64 : (linear.k + 1) / 2 * 64;
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

// How a product leaves its result.
enum Mode { kStore, kAdd };

template <int M, int P, int FORM, bool AHEAD>
static void tile(const Linear& linear, const char* x, int64_t row_bytes, int64_t panel,
                 const char* ahead, float* y, int64_t y_stride, Mode mode) {
  vf acc[M][P * kVectors];
#pragma GCC unroll 24
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < P * kVectors; ++v) acc[m][v] = vf{};
  const int64_t w_bytes = panel_bytes(linear);
  accumulate<M, P, FORM, AHEAD>(acc, x, row_bytes,
                         static_cast<const char*>(linear.packed) + panel * w_bytes, w_bytes, linear.k, ahead);
  for (int p = 0; p < P; ++p) {
    const int64_t first = (panel + p) * kPanel;
    const int64_t valid = low(static_cast<int64_t>(kPanel), linear.n - first);
    float bias[kPanel] = {};
    if (linear.bias)
      for (int64_t i = 0; i < valid; ++i) bias[i] = linear.bias[first + i];
    for (int m = 0; m < M; ++m) {
      float* target = y + m * y_stride + first;
      if (valid == kPanel) {
        for (int v = 0; v < kVectors; ++v) {
          vf value = acc[m][p * kVectors + v] + load(bias + v * W);
          if (mode == kAdd) value += load(target + v * W);
          store(target + v * W, value);
        }
      } else {
        float values[kPanel];
        for (int v = 0; v < kVectors; ++v)
          store(values + v * W, acc[m][p * kVectors + v] + load(bias + v * W));
        for (int64_t i = 0; i < valid; ++i) target[i] = mode == kAdd ? target[i] + values[i] : values[i];
      }
    }
  }
}

template <int M, int P, int FORM, bool AHEAD>
static void tile_of(int64_t rows, const Linear& linear, const char* x, int64_t row_bytes,
                    int64_t panel, const char* ahead, float* y, int64_t y_stride, Mode mode) {
  if (rows == M)
    return tile<M, P, FORM, AHEAD>(linear, x, row_bytes, panel, ahead, y, y_stride, mode);
  if constexpr (M > 1)
    tile_of<M - 1, P, FORM, AHEAD>(rows, linear, x, row_bytes, panel, ahead, y, y_stride, mode);
}

// P panels side by side over all rows, in row tiles of nearly equal height.
template <int P, int FORM>
static void strip(const Linear& linear, const char* x, int64_t row_bytes, int64_t rows,
                  int64_t panel, const char* ahead, float* y, int64_t y_stride, Mode mode) {
  constexpr int kRows = kAccumulators / (P * kVectors);
  const int64_t tiles = ceil_div(rows, kRows);
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t r = rows * t / tiles, end = rows * (t + 1) / tiles;
    const char* xr = x + r * row_bytes;
    float* yr = y + r * y_stride;
    if (t == 0)
      tile_of<kRows, P, FORM, true>(end - r, linear, xr, row_bytes, panel, ahead, yr, y_stride,
                                    mode);
    else
      tile_of<kRows, P, FORM, false>(end - r, linear, xr, row_bytes, panel, ahead, yr, y_stride,
                                     mode);
  }
}

template <int FORM>
static void product_form(const Linear& linear, const char* x, int64_t row_bytes, int64_t rows,
                         float* y, int64_t y_stride, Mode mode, int64_t first, int64_t last,
                         const char* next) {
  // What follows a strip of `count` panels: the next strip, or the weights multiplied after these.
  const char* weights = static_cast<const char*>(linear.packed);
  auto after = [&](int64_t panel, int64_t count) {
    return panel + count < last || !next ? weights + (panel + count) * panel_bytes(linear) : next;
  };
  constexpr int64_t kBlockBytes = 512 * 1024;  // rows of activations that stay in the L2 cache
  const int64_t block = high(static_cast<int64_t>(48), kBlockBytes / row_bytes / 12 * 12);
  for (int64_t r = 0; r < rows; r += block) {
    const int64_t count = low(block, rows - r);
    const char* xr = x + r * row_bytes;
    float* yr = y + r * y_stride;
    int64_t panel = first;
    // Few rows: several panels at once, so that memory has several streams to fetch from.
    if constexpr (4 * kVectors <= kAccumulators)
      if (count * 4 * kVectors <= kAccumulators)
        for (; panel + 4 <= last; panel += 4)
          strip<4, FORM>(linear, xr, row_bytes, count, panel, after(panel, 4), yr, y_stride, mode);
    if constexpr (2 * kVectors <= kAccumulators)
      if (kVectors == 1 || count * 2 * kVectors <= kAccumulators)
        for (; panel + 2 <= last; panel += 2)
          strip<2, FORM>(linear, xr, row_bytes, count, panel, after(panel, 2), yr, y_stride, mode);
    for (; panel < last; ++panel)
      strip<1, FORM>(linear, xr, row_bytes, count, panel, after(panel, 1), yr, y_stride, mode);
  }
}

// Where the part of `linear` begins that this thread multiplies.
MULL_INLINE const char* own_part(const Linear& linear, const Team& team) {
  return static_cast<const char*>(linear.packed) + team.first(panels_of(linear)) * panel_bytes(linear);
}

// Panels [first, last) of y (=|+=) x @ weights.T + bias; x in the form of `linear`, rows padded.
// `later`: the weights multiplied after these, or null.
static void product_panels(const Linear& linear, const void* x, int64_t rows, float* y,
                           int64_t y_stride, Mode mode, int64_t first, int64_t last,
                           const char* later = nullptr) {
  const int32_t form = form_of(linear);
  const int64_t row_bytes = padded(linear.k) * form_bytes(form);
  const char* bytes = static_cast<const char*>(x);
  if (form == kPlain)
    product_form<kPlain>(linear, bytes, row_bytes, rows, y, y_stride, mode, first, last, later);
  else if (form == kRounded)
    product_form<kRounded>(linear, bytes, row_bytes, rows, y, y_stride, mode, first, last, later);
  else
    product_form<kPairs>(linear, bytes, row_bytes, rows, y, y_stride, mode, first, last, later);
}

// This thread's panels. `next`: the linear multiplied after this one, or null.
static void product(const Linear& linear, const void* x, int64_t rows, float* y, int64_t y_stride,
                    Mode mode, const Linear* next, const Team& team) {
  product_panels(linear, x, rows, y, y_stride, mode, team.first(panels_of(linear)),
                 team.last(panels_of(linear)), next ? own_part(*next, team) : nullptr);
}

MULL_INLINE void* form_row(void* base, int32_t form, int64_t width, int64_t row) {
  return static_cast<char*>(base) + row * padded(width) * form_bytes(form);
}

MULL_INLINE void clear_padding(void* row, int32_t form, int64_t width) {
  for (int64_t i = width; i < padded(width); ++i) store_form_one(row, form, i, 0.0f);
}

static void to_form(const float* x, int64_t width, void* row, int32_t form) {
  int64_t i = 0;
  for (; i + W <= width; i += W) store_form(row, form, i, load(x + i));
  for (; i < width; ++i) store_form_one(row, form, i, x[i]);
  clear_padding(row, form, width);
}

static size_t linear_scratch(const Linear* linear, int64_t rows) {
  return static_cast<size_t>(rows * padded(linear->k) * form_bytes(form_of(*linear)));
}

static void linear_team(const Linear* linear, const float* x, int64_t rows, float* y, char* scratch,
                        const Team& team) {
  const int32_t form = form_of(*linear);
  for (int64_t r = team.first(rows); r < team.last(rows); ++r)
    to_form(x + r * linear->k, linear->k, form_row(scratch, form, linear->k, r), form);
  team.barrier();
  product(*linear, scratch, rows, y, linear->n, kStore, nullptr, team);
}
