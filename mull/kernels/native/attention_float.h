// Attention over a cache of float32 or bfloat16, widened to float32.

constexpr int64_t kValueChunk = 64;  // value rows weighed at a time
constexpr int64_t kFewRows = 4;      // up to here rows read the cache without a widened copy
constexpr int64_t kAhead = 32;       // keys asked for before they are needed

template <class T>
static void widen(const T* from, int64_t n, float* to) {
  int64_t i = 0;
  for (; i + W <= n; i += W) store(to + i, load(from + i));
  for (; i < n; ++i) to[i] = load_one(from + i);
  for (; i < wide(n); ++i) to[i] = 0.0f;
}

// One head of a sequence's cached rows.
struct CachedRows {
  const char* cache;
  const int32_t* table;
  int64_t block_size;
  int64_t token_bytes;
  int64_t row_bytes;
};

template <class T>
static CachedRows cached_rows(const Paging& paging, int64_t b, const void* cache, int64_t stride,
                              int64_t offset, int64_t dim) {
  return {static_cast<const char*>(cache) + offset * sizeof(T),
          paging.block_table + b * paging.blocks_per_sequence, paging.block_size,
          stride * static_cast<int64_t>(sizeof(T)), dim * static_cast<int64_t>(sizeof(T))};
}

// visit(address) for rows [first, last).
template <class Visit>
MULL_INLINE void walk(const CachedRows& rows, int64_t first, int64_t last, const Visit& visit) {
  // 32 bits: a 64-bit division takes as long as a dozen multiplications.
  const uint32_t size = static_cast<uint32_t>(rows.block_size), start = static_cast<uint32_t>(first);
  int64_t block = start / size, inside = start % size;
  for (int64_t i = first; i < last; ++block, inside = 0) {
    const char* from = rows.cache + (rows.table[block] * rows.block_size + inside) * rows.token_bytes;
    for (const int64_t end = low(last, i + rows.block_size - inside); i < end; ++i) {
      visit(from);
      from += rows.token_bytes;
    }
  }
}

// The rows as float32 [last - first, dim padded with zeros].
template <class T>
static void gather(const CachedRows& rows, int64_t dim, int64_t first, int64_t last, float* to) {
  walk(rows, first, last, [&](const char* from) {
    widen(reinterpret_cast<const T*>(from), dim, to);
    to += wide(dim);
  });
}

// The rows are short and lie apart: without asking ahead every one of them waits for memory.
static void ask_for(const CachedRows& rows, int64_t first, int64_t last) {
  walk(rows, first, last, [&](const char* from) {
    for (int64_t i = 0; i < rows.row_bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
  });
}

// Dot products of ROWS queries with half a vector of keys; one more evens + odds, of both halves,
// gives the sums. Each sum is taken in the same order however many rows there are.
template <int ROWS, class T>
MULL_INLINE void half_dots(const float* q, int64_t q_stride, const T* const* keys, int64_t dim,
                           vf (&half)[ROWS]) {
  vf acc[ROWS][W / 2];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int s = 0; s < W / 2; ++s) acc[r][s] = vf{};
  for (int64_t i = 0; i < dim; i += W) {
    vf query[ROWS];
    for (int r = 0; r < ROWS; ++r) query[r] = load(q + r * q_stride + i);
#pragma GCC unroll 8
    for (int s = 0; s < W / 2; ++s) {
      vf key = load(keys[s] + i);
      for (int r = 0; r < ROWS; ++r) acc[r][s] += query[r] * key;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) half[r] = fold<W / 2>(acc[r]);
}

// scores[r][0..W) of ROWS queries with W keys.
template <int ROWS, class T>
static void score(const float* q, int64_t q_stride, const T* const* keys, int64_t dim,
                  float* scores) {
  vf first[ROWS], second[ROWS];
  half_dots<ROWS>(q, q_stride, keys, dim, first);
  half_dots<ROWS>(q, q_stride, keys + W / 2, dim, second);
  for (int r = 0; r < ROWS; ++r)
    store(scores + r * kSplit, evens(first[r], second[r]) + odds(first[r], second[r]));
}

template <class T>
static void score_rows(const float* q, int64_t rows, const T* const* keys, int64_t dim,
                       float* scores) {
  int64_t r = 0;
  for (; r + 3 <= rows; r += 3) score<3>(q + r * dim, dim, keys, dim, scores + r * kSplit);
  if (rows - r == 2) score<2>(q + r * dim, dim, keys, dim, scores + r * kSplit);
  if (rows - r == 1) score<1>(q + r * dim, dim, keys, dim, scores + r * kSplit);
}

// Rows and vectors of a register tile of weighed values: sums, values and a weight in all registers.
constexpr int kWeighedRows = MULL_VECTOR_BYTES == 64 ? 6 : 4;
constexpr int kWeighedVectors = MULL_VECTOR_BYTES == 64 ? 4 : 3;

// out[r][0 .. VECTORS * W) += sum over s of weights[r][s] * row(s).
template <int ROWS, int VECTORS, class Row>
MULL_INLINE void weigh(float* out, int64_t dim, const float* weights, int64_t count, const Row& row) {
  vf acc[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) acc[r][v] = load(out + r * dim + v * W);
  for (int64_t s = 0; s < count; ++s) {
    vf value[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) value[v] = load(row(s) + v * W);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) acc[r][v] += weights[r * kSplit + s] * value[v];
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) store(out + r * dim + v * W, acc[r][v]);
}

// Cached rows of `dim` values, and room for a copy of their last columns.
template <class T>
struct ValueRows {
  const T* rows[kValueChunk];
  int64_t count;
  int64_t dim;
  float* slice;  // [kValueChunk, kWeighedVectors * W]
};

// For rows that see the same `count` values, columns [at, at + VECTORS * W): widening them for every
// register tile anew costs less than a copy. What is beyond their end is zero.
template <int VECTORS, class T>
static __attribute__((noinline)) void weigh_columns(float* out, int64_t rows, int64_t dim,
                                                    const float* weights, const ValueRows<T>& values,
                                                    int64_t at, int64_t count) {
  constexpr int64_t kWidth = VECTORS * W;
  if (at + kWidth <= values.dim) {
    by_register_tiles<kWeighedRows>(rows, [&](auto height, int64_t r) {
      weigh<height.count, VECTORS>(out + r * dim + at, dim, weights + r * kSplit, count,
                                   [&](int64_t s) { return values.rows[s] + at; });
    });
    return;
  }
  const int64_t width = low(kWidth, values.dim - at);
  for (int64_t s = 0; s < count; ++s) widen(values.rows[s] + at, width, values.slice + s * kWidth);
  by_register_tiles<kWeighedRows>(rows, [&](auto height, int64_t r) {
    weigh<height.count, VECTORS>(out + r * dim + at, dim, weights + r * kSplit, count,
                                 [&](int64_t s) { return values.slice + s * kWidth; });
  });
}

template <class T>
static void weigh_rows(float* out, int64_t rows, int64_t dim, const float* weights,
                       const ValueRows<T>& values, int64_t count) {
  int64_t at = 0;
  for (; at + kWeighedVectors * W <= dim; at += kWeighedVectors * W)
    weigh_columns<kWeighedVectors>(out, rows, dim, weights, values, at, count);
  if (at + 2 * W <= dim) {
    weigh_columns<2>(out, rows, dim, weights, values, at, count);
    at += 2 * W;
  }
  if (at < dim) weigh_columns<1>(out, rows, dim, weights, values, at, count);
}

struct FloatScratch {
  Parts parts;
  float* q;       // [rows, key_dim padded], times the scale
  float* keys;    // [W, key_dim padded]
  float* slice;   // see ValueRows
  float* scores;  // [rows, kSplit]
};

// values: the rows from first_key on.
template <class T>
static void weigh_tile(const AttentionTile& tile, const FloatScratch& s, int64_t first_key,
                       int64_t split_start, const ValueRows<T>& values) {
  const int64_t dim = wide(values.dim);
  auto visible = [&](int64_t r) { return low(values.count, limit_of(tile, r) - first_key); };
  for (int64_t r = 0; r < tile.rows;) {
    const int64_t seen = visible(r);
    int64_t same = 1;
    while (r + same < tile.rows && visible(r + same) == seen) ++same;
    if (seen > 0)
      weigh_rows(s.parts.part + r * dim, same, dim,
                 s.scores + r * kSplit + first_key - split_start, values, seen);
    r += same;
  }
}

template <class T>
static void score_tile(const Attention& a, const AttentionTile& tile, const CachedRows& keys,
                       int64_t k, int64_t end, const FloatScratch& s, float* scores) {
  const int64_t dim = wide(a.key_dim), count = end - k;
  // Few rows read the cache as it lies; many share one widened copy.
  if (dim == a.key_dim && tile.rows <= kFewRows) {
    const T* rows[W] = {};
    int64_t i = 0;
    walk(keys, k, end, [&](const char* from) { rows[i++] = reinterpret_cast<const T*>(from); });
    for (; i < W; ++i) rows[i] = rows[0];  // their scores are masked afterwards
    score_rows(s.q, tile.rows, rows, dim, scores);
  } else {
    gather<T>(keys, a.key_dim, k, end, s.keys);
    const float* rows[W];
    for (int64_t i = 0; i < W; ++i) rows[i] = s.keys + (i < count ? i : 0) * dim;
    score_rows(s.q, tile.rows, rows, dim, scores);
  }
}

template <class T>
static void weigh_chunk(const Attention& a, const AttentionTile& tile, const CachedRows& cached,
                        int64_t k, int64_t end, int64_t split_start, const FloatScratch& s) {
  ValueRows<T> values;
  values.count = 0, values.dim = a.value_dim, values.slice = s.slice;
  walk(cached, k, end, [&](const char* from) {
    values.rows[values.count++] = reinterpret_cast<const T*>(from);
  });
  weigh_tile(tile, s, k, split_start, values);
}

// Softmax of one row's scores over its `count` keys, against their maximum; the sum apart.
static void soften(float* scores, int64_t count, float* top, float* total) {
  *top = top_score(scores, count);
  vf sums{};
  for (int64_t i = 0; i < count; i += W) {
    vf weight = power_of_two(load(scores + i) - *top);
    if (i + W > count) weight = select(first_lanes(count - i), weight, vf{});
    store(scores + i, weight);
    sums += weight;
  }
  *total = sum(sums);
}

template <class T>
struct FloatCache {
  using Scratch = FloatScratch;
  static constexpr int64_t kTileRows = 24;

  static Scratch lay_out(const Attention& a, Arena* arena) {
    Scratch s;
    s.parts = lay_out_parts(a, kTileRows, arena);
    s.q = arena->take<float>(kTileRows * wide(a.key_dim));
    s.keys = arena->take<float>(W * wide(a.key_dim));
    s.slice = arena->take<float>(kValueChunk * kWeighedVectors * W);
    s.scores = arena->take<float>(kTileRows * kSplit);
    return s;
  }

  static void load_queries(const Attention& a, const AttentionTile& tile, const Scratch& s) {
    const int64_t key_dim = wide(a.key_dim);
    const float scale = a.scale * kLog2E;
    for (int64_t r = 0; r < tile.rows; ++r) {
      const float* q = a.q + row_of(tile, r) * a.q_stride + head_of(tile, r) * a.key_dim;
      for (int64_t i = 0; i < a.key_dim; ++i) s.q[r * key_dim + i] = q[i] * scale;
      for (int64_t i = a.key_dim; i < key_dim; ++i) s.q[r * key_dim + i] = 0.0f;
    }
  }

  // Scores, softmax weights and their sums for one split of the keys; result in s.parts.
  static __attribute__((noinline)) void attend_split(const Attention& a, const AttentionTile& tile,
                                                   int64_t split, const FloatScratch& s) {
  const int64_t value_dim = wide(a.value_dim);
  const int64_t first = split * kSplit;
  const int64_t end = low(first + kSplit, limit_of(tile, tile.rows - 1));
  const CachedRows keys = cached_rows<T>(a.paging, tile.b, a.key, a.key_token_stride,
                                         tile.kv_head * a.key_head_stride, a.key_dim);
  const CachedRows values = cached_rows<T>(a.paging, tile.b, a.value, a.value_token_stride,
                                           tile.kv_head * a.value_head_stride, a.value_dim);
  ask_for(keys, first, low(first + kAhead, end));
  for (int64_t k = first; k < end; k += W) {
    ask_for(keys, low(k + kAhead, end), low(k + kAhead + W, end));
    if (a.value != a.key) ask_for(values, k, low(k + W, end));  // latents are both
    score_tile<T>(a, tile, keys, k, low(k + W, end), s, s.scores + k - first);
  }
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t count = low(end, limit_of(tile, r)) - first;
    s.parts.part_max[r] = -__builtin_inff();
    s.parts.part_sum[r] = 0.0f;
    for (int64_t i = 0; i < value_dim; i += W) store(s.parts.part + r * value_dim + i, vf{});
    if (count > 0) soften(s.scores + r * kSplit, count, s.parts.part_max + r, s.parts.part_sum + r);
  }
  for (int64_t k = first; k < end; k += kValueChunk)
    weigh_chunk<T>(a, tile, values, k, low(k + kValueChunk, end), first, s);
}
};
