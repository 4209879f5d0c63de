// Attention over the paged cache. A piece of work is one sequence, one key head, some of its query
// heads and a few query positions ("rows"), over one or all splits of the keys. Splits begin at
// fixed key positions and are merged in order, so a row's result depends on nothing but its keys.

constexpr int64_t kSplit = 512;      // keys per split
constexpr int64_t kTileRows = 24;    // rows that share one reading of the keys
constexpr int64_t kValueChunk = 16;  // value rows widened to float32 at a time
constexpr int64_t kFewRows = 4;      // up to here rows read the cache without a widened copy
constexpr int64_t kAhead = 32;       // keys asked for before they are needed
constexpr int64_t kSplitBytes = 16 << 20;  // most scratch for splits done side by side

MULL_INLINE int64_t wide(int64_t n) { return round_up(n, W); }

struct AttentionPlan {
  int64_t groups;          // query heads per key head
  int64_t heads_per_tile;
  int64_t head_tiles;
  int64_t positions_per_tile;
  int64_t items;           // tiles over all sequences and key heads
  int64_t splits;          // most splits of any sequence
  bool side_by_side;       // every split its own piece of work, merged afterwards
};

MULL_INLINE int64_t new_rows(const Paging& paging, int64_t b) {
  return paging.query_starts[b + 1] - paging.query_starts[b];
}

static AttentionPlan plan_attention(const Attention& a, int threads) {
  AttentionPlan plan;
  plan.groups = a.heads / a.kv_heads;
  plan.heads_per_tile = low(plan.groups, kTileRows);
  plan.head_tiles = ceil_div(plan.groups, plan.heads_per_tile);
  plan.positions_per_tile = high(static_cast<int64_t>(1), kTileRows / plan.heads_per_tile);
  plan.items = 0;
  plan.splits = 1;
  for (int64_t b = 0; b < a.paging.sequences; ++b) {
    plan.items += ceil_div(new_rows(a.paging, b), plan.positions_per_tile);
    if (new_rows(a.paging, b) > 0)
      plan.splits = high(plan.splits, ceil_div(static_cast<int64_t>(a.paging.context[b]), kSplit));
  }
  plan.items *= a.kv_heads * plan.head_tiles;
  const int64_t bytes = a.rows * a.heads * plan.splits * (wide(a.value_dim) + W) * 4;
  plan.side_by_side =
      threads > 1 && plan.splits > 1 && plan.items < 4 * threads && bytes <= kSplitBytes;
  return plan;
}

struct AttentionTile {
  int64_t b, kv_head, first_head, heads, first_row, rows;  // rows = positions * heads
  int64_t first_limit;  // keys visible to the first position
};

static AttentionTile find_tile(const Attention& a, const AttentionPlan& plan, int64_t item) {
  AttentionTile tile;
  const int64_t across = a.kv_heads * plan.head_tiles;
  int64_t block = item / across;
  const int64_t column = item % across;
  tile.kv_head = column / plan.head_tiles;
  tile.b = 0;
  for (;; ++tile.b) {
    const int64_t tiles = ceil_div(new_rows(a.paging, tile.b), plan.positions_per_tile);
    if (block < tiles) break;
    block -= tiles;
  }
  const int64_t n = new_rows(a.paging, tile.b);
  const int64_t position = block * plan.positions_per_tile;
  const int64_t head = column % plan.head_tiles * plan.heads_per_tile;
  tile.first_head = tile.kv_head * plan.groups + head;
  tile.heads = low(plan.heads_per_tile, plan.groups - head);
  tile.first_row = a.paging.query_starts[tile.b] + position;
  tile.rows = low(plan.positions_per_tile, n - position) * tile.heads;
  tile.first_limit = a.paging.context[tile.b] - n + position + 1;
  return tile;
}

// Scratch of one thread, all float32.
struct AttentionScratch {
  float* q;        // [rows, key_dim padded]
  float* keys;     // [W, key_dim padded]
  float* values;   // [kValueChunk, value_dim padded]
  float* scores;   // [rows, kSplit]
  float* part;     // [rows, value_dim padded]: one split
  float* whole;    // [rows, value_dim padded]: merged
  float* part_max;
  float* part_sum;
  float* whole_max;
  float* whole_sum;
};

MULL_INLINE int64_t attention_scratch_floats(const Attention& a) {
  const int64_t rows = kTileRows;
  return rows * wide(a.key_dim) + W * wide(a.key_dim) + kValueChunk * wide(a.value_dim) +
         rows * kSplit + 2 * rows * wide(a.value_dim) + 4 * rows + 64;
}

static AttentionScratch lay_out(const Attention& a, float* p) {
  const int64_t rows = kTileRows, key = wide(a.key_dim), value = wide(a.value_dim);
  AttentionScratch s;
  s.q = p, p += rows * key;
  s.keys = p, p += W * key;
  s.values = p, p += kValueChunk * value;
  s.scores = p, p += rows * kSplit;
  s.part = p, p += rows * value;
  s.whole = p, p += rows * value;
  s.part_max = p, p += rows;
  s.part_sum = p, p += rows;
  s.whole_max = p, p += rows;
  s.whole_sum = p;
  return s;
}

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

template <int ROWS, int VECTORS, class T>
static void weigh(float* out, int64_t dim, const float* weights, const T* const* values, int64_t at,
                  int64_t count) {
  vf acc[ROWS][VECTORS];
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < VECTORS; ++v) acc[r][v] = load(out + r * dim + at + v * W);
  for (int64_t s = 0; s < count; ++s) {
    vf value[VECTORS];
    for (int v = 0; v < VECTORS; ++v) value[v] = load(values[s] + at + v * W);
    for (int r = 0; r < ROWS; ++r)
      for (int v = 0; v < VECTORS; ++v) acc[r][v] += weights[r * kSplit + s] * value[v];
  }
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < VECTORS; ++v) store(out + r * dim + at + v * W, acc[r][v]);
}

// out[r] += sum over s of weights[r][s] * values[s], for ROWS rows that see the same `count` values.
template <int ROWS, class T>
static void weigh_rows(float* out, int64_t dim, const float* weights, const T* const* values,
                       int64_t count) {
  int64_t i = 0;
  for (; i + 4 * W <= dim; i += 4 * W) weigh<ROWS, 4>(out, dim, weights, values, i, count);
  for (; i < dim; i += W) weigh<ROWS, 1>(out, dim, weights, values, i, count);
}

MULL_INLINE int64_t limit_of(const AttentionTile& tile, int64_t row) {
  return tile.first_limit + row / tile.heads;
}

// values: the rows first_key .. first_key + count.
template <class T>
static void weigh_tile(const AttentionTile& tile, const AttentionScratch& s, int64_t dim,
                       int64_t first_key, int64_t split_start, const T* const* values,
                       int64_t count) {
  auto visible = [&](int64_t r) { return low(count, limit_of(tile, r) - first_key); };
  for (int64_t r = 0; r < tile.rows;) {
    const int64_t seen = visible(r);
    int64_t same = 1;
    while (same < 4 && r + same < tile.rows && visible(r + same) == seen) ++same;
    float* out = s.part + r * dim;
    const float* weights = s.scores + r * kSplit + first_key - split_start;
    if (seen > 0) {
      if (same == 4) weigh_rows<4>(out, dim, weights, values, seen);
      if (same == 3) weigh_rows<3>(out, dim, weights, values, seen);
      if (same == 2) weigh_rows<2>(out, dim, weights, values, seen);
      if (same == 1) weigh_rows<1>(out, dim, weights, values, seen);
    }
    r += same;
  }
}

template <class T>
static void score_tile(const Attention& a, const AttentionTile& tile, const CachedRows& keys,
                       int64_t k, int64_t end, const AttentionScratch& s, float* scores) {
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
static void weigh_chunk(const Attention& a, const AttentionTile& tile, const CachedRows& values,
                        int64_t k, int64_t end, int64_t split_start, const AttentionScratch& s) {
  const int64_t dim = wide(a.value_dim), count = end - k;
  if (dim == a.value_dim && tile.rows <= kFewRows) {
    const T* rows[kValueChunk] = {};
    int64_t i = 0;
    walk(values, k, end, [&](const char* from) { rows[i++] = reinterpret_cast<const T*>(from); });
    weigh_tile(tile, s, dim, k, split_start, rows, count);
  } else {
    gather<T>(values, a.value_dim, k, end, s.values);
    const float* rows[kValueChunk];
    for (int64_t i = 0; i < count; ++i) rows[i] = s.values + i * dim;
    weigh_tile(tile, s, dim, k, split_start, rows, count);
  }
}

// Softmax of one row's scores over its `count` keys, against their maximum; the sum apart.
static void soften(float* scores, int64_t count, float* top, float* total) {
  for (int64_t i = count; i < round_up(count, W); ++i) scores[i] = -__builtin_inff();
  vf best = load(scores);
  for (int64_t i = W; i < count; i += W) {
    vf next = load(scores + i);
    best = select((vi)(best > next), best, next);
  }
  *top = max_of(best);
  vf sums{};
  for (int64_t i = 0; i < count; i += W) {
    vf weight = exponential(load(scores + i) - *top);
    store(scores + i, weight);
    sums += weight;
  }
  *total = sum(sums);
}

// Scores, softmax weights and their sums for one split of the keys; result in s.part*.
template <class T>
static __attribute__((noinline)) void attend_split(const Attention& a, const AttentionTile& tile,
                                                   int64_t split, const AttentionScratch& s) {
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
    ask_for(values, k, low(k + W, end));
    score_tile<T>(a, tile, keys, k, low(k + W, end), s, s.scores + k - first);
  }
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t count = low(end, limit_of(tile, r)) - first;
    s.part_max[r] = -__builtin_inff();
    s.part_sum[r] = 0.0f;
    for (int64_t i = 0; i < value_dim; i += W) store(s.part + r * value_dim + i, vf{});
    if (count > 0) soften(s.scores + r * kSplit, count, s.part_max + r, s.part_sum + r);
  }
  for (int64_t k = first; k < end; k += kValueChunk)
    weigh_chunk<T>(a, tile, values, k, low(k + kValueChunk, end), first, s);
}

// (max, sum, values) of the whole += those of the next split. One body, so that splits done side
// by side and one after another round alike.
static __attribute__((noinline)) void merge(float* whole_max, float* whole_sum, float* whole,
                                            float part_max, float part_sum, const float* part,
                                            int64_t dim) {
  const float top = *whole_max > part_max ? *whole_max : part_max;
  const float old_factor = exponential_one(*whole_max - top);
  const float factor = exponential_one(part_max - top);
  *whole_sum = *whole_sum * old_factor + part_sum * factor;
  *whole_max = top;
  for (int64_t i = 0; i < dim; i += W)
    store(whole + i, load(whole + i) * old_factor + load(part + i) * factor);
}

static __attribute__((noinline)) void finish_row(const Attention& a, int64_t row, int64_t head,
                                                 float total, const float* values) {
  const int64_t bytes = a.out_form == kQuantised ? row_bytes_of(kQuantised, a.heads * a.value_dim)
                                                 : a.out_stride * (a.out_form == kPairs ? 2 : 4);
  void* out = static_cast<char*>(a.out) + row * bytes;
  const float inverse = 1.0f / total;
  float part[kGroup];
  for (int64_t first = 0; first < a.value_dim; first += kGroup) {
    const int64_t count = low(kGroup, a.value_dim - first);
    int64_t i = 0;
    for (; i + W <= count; i += W) store(part + i, load(values + first + i) * inverse);
    for (; i < count; ++i) part[i] = values[first + i] * inverse;
    store_span(part, head * a.value_dim + first, count, out, a.out_form);
  }
}

static void load_queries(const Attention& a, const AttentionTile& tile, const AttentionScratch& s) {
  const int64_t key_dim = wide(a.key_dim);
  for (int64_t r = 0; r < tile.rows; ++r) {
    const float* q = a.q + (tile.first_row + r / tile.heads) * a.q_stride +
                     (tile.first_head + r % tile.heads) * a.key_dim;
    for (int64_t i = 0; i < a.key_dim; ++i) s.q[r * key_dim + i] = q[i] * a.scale;
    for (int64_t i = a.key_dim; i < key_dim; ++i) s.q[r * key_dim + i] = 0.0f;
  }
}

template <class T>
static void attend_all_splits(const Attention& a, const AttentionTile& tile,
                              const AttentionScratch& s) {
  const int64_t dim = wide(a.value_dim);
  const int64_t last = tile.first_limit + (tile.rows - 1) / tile.heads;
  for (int64_t split = 0; split * kSplit < last; ++split) {
    attend_split<T>(a, tile, split, s);
    for (int64_t r = 0; r < tile.rows; ++r) {
      if (split * kSplit >= tile.first_limit + r / tile.heads) continue;
      if (split == 0) {
        s.whole_max[r] = s.part_max[r];
        s.whole_sum[r] = s.part_sum[r];
        __builtin_memcpy(s.whole + r * dim, s.part + r * dim, dim * sizeof(float));
      } else {
        merge(s.whole_max + r, s.whole_sum + r, s.whole + r * dim, s.part_max[r], s.part_sum[r],
              s.part + r * dim, dim);
      }
    }
  }
  for (int64_t r = 0; r < tile.rows; ++r)
    finish_row(a, tile.first_row + r / tile.heads, tile.first_head + r % tile.heads,
               s.whole_sum[r], s.whole + r * dim);
}

// One split's result, kept until all are there: [max, sum, ..., values].
MULL_INLINE float* kept_split(const Attention& a, const AttentionPlan& plan, float* splits,
                              int64_t row, int64_t head, int64_t split) {
  return splits + ((row * a.heads + head) * plan.splits + split) * (wide(a.value_dim) + W);
}

template <class T>
static void attend_one_split(const Attention& a, const AttentionPlan& plan,
                             const AttentionTile& tile, int64_t split, const AttentionScratch& s,
                             float* splits) {
  const int64_t dim = wide(a.value_dim);
  if (split * kSplit >= tile.first_limit + (tile.rows - 1) / tile.heads) return;
  attend_split<T>(a, tile, split, s);
  for (int64_t r = 0; r < tile.rows; ++r) {
    float* kept = kept_split(a, plan, splits, tile.first_row + r / tile.heads,
                             tile.first_head + r % tile.heads, split);
    kept[0] = s.part_max[r];
    kept[1] = s.part_sum[r];
    __builtin_memcpy(kept + W, s.part + r * dim, dim * sizeof(float));
  }
}

static void merge_splits(const Attention& a, const AttentionPlan& plan, float* splits, int64_t row,
                         int64_t limit, int64_t head) {
  float* whole = kept_split(a, plan, splits, row, head, 0);
  for (int64_t split = 1; split * kSplit < limit; ++split) {
    const float* part = kept_split(a, plan, splits, row, head, split);
    merge(whole, whole + 1, whole + W, part[0], part[1], part + W, wide(a.value_dim));
  }
  finish_row(a, row, head, whole[1], whole + W);
}

static size_t attention_scratch(const Attention* a, int threads) {
  const AttentionPlan plan = plan_attention(*a, threads);
  size_t bytes = 4 * static_cast<size_t>(threads * attention_scratch_floats(*a));
  if (plan.side_by_side)
    bytes += 4 * static_cast<size_t>(a->rows * a->heads * plan.splits * (wide(a->value_dim) + W));
  return bytes;
}

// `taken` counts the pieces of work handed out; zero at the start.
template <class T>
static void attention_of(const Attention& a, int64_t* taken, char* scratch, const Team& team) {
  const AttentionPlan plan = plan_attention(a, team.size);
  float* floats = reinterpret_cast<float*>(scratch);
  const AttentionScratch s = lay_out(a, floats + team.id * attention_scratch_floats(a));
  float* splits = floats + team.size * attention_scratch_floats(a);
  const int64_t pieces = plan.side_by_side ? plan.items * plan.splits : plan.items;
  for (;;) {
    const int64_t piece = __atomic_fetch_add(taken, 1, __ATOMIC_RELAXED);
    if (piece >= pieces) break;
    const AttentionTile tile =
        find_tile(a, plan, plan.side_by_side ? piece / plan.splits : piece);
    load_queries(a, tile, s);
    if (plan.side_by_side)
      attend_one_split<T>(a, plan, tile, piece % plan.splits, s, splits);
    else
      attend_all_splits<T>(a, tile, s);
  }
  if (!plan.side_by_side) return;
  team.barrier();
  for (int64_t b = 0; b < a.paging.sequences; ++b) {
    const int64_t n = new_rows(a.paging, b);
    for (int64_t i = team.first(n * a.heads); i < team.last(n * a.heads); ++i)
      merge_splits(a, plan, splits, a.paging.query_starts[b] + i / a.heads,
                   a.paging.context[b] - n + i / a.heads + 1, i % a.heads);
  }
}

static void attention_team(const Attention* a, int64_t* taken, char* scratch, const Team& team) {
  if (a->cache_kind == kFloat32)
    attention_of<float>(*a, taken, scratch, team);
  else
    attention_of<uint16_t>(*a, taken, scratch, team);
}
