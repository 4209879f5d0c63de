// Attention over the paged cache. A piece of work is one sequence, one key head, some of its query
// heads and a few query positions ("rows"), over one or all splits of the keys. Splits begin at
// fixed key positions and are merged in order, so a row's result depends on nothing but its keys.
// How one split is done depends on the cache: attention_float.h, attention_int8.h.

constexpr int64_t kSplitBytes = 16 << 20;  // most scratch for splits done side by side

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

MULL_INLINE int64_t splits_of(int64_t keys) { return ceil_div(keys, kSplit); }

static AttentionPlan plan_attention(const Attention& a, int64_t tile_rows, int threads) {
  AttentionPlan plan;
  plan.groups = a.heads / a.kv_heads;
  plan.heads_per_tile = low(plan.groups, tile_rows);
  plan.positions_per_tile = high(static_cast<int64_t>(1), tile_rows / plan.heads_per_tile);
  plan.items = 0;
  plan.splits = 1;
  int64_t work = 0;
  for (int64_t b = 0; b < a.paging.sequences; ++b) {
    const int64_t tiles = ceil_div(new_rows(a.paging, b), plan.positions_per_tile);
    const int64_t splits = splits_of(a.paging.context[b]);
    plan.items += tiles;
    work += tiles * splits;
    if (tiles > 0) plan.splits = high(plan.splits, splits);
  }
  plan.items *= a.kv_heads;
  // A single short sequence of latents: one key head for all, whose query heads are shared out.
  if (plan.splits == 1 && plan.items > 0 && plan.items < threads)
    plan.heads_per_tile = ceil_div(plan.heads_per_tile, ceil_div(threads, plan.items));
  plan.head_tiles = ceil_div(plan.groups, plan.heads_per_tile);
  plan.items *= plan.head_tiles;
  work *= a.kv_heads * plan.head_tiles;
  const int64_t bytes = a.rows * a.heads * plan.splits * (wide(a.value_dim) + W) * 4;
  // A single tile of more than a quarter of a thread's share could leave the other threads waiting.
  plan.side_by_side = threads > 1 && plan.splits > 1 && bytes <= kSplitBytes &&
                      4 * threads * plan.splits > work;
  return plan;
}

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

// (max, sum, values) of the whole += those of the next split. One body, so that splits done side
// by side and one after another round alike.
static __attribute__((noinline)) void merge(float* whole_max, float* whole_sum, float* whole,
                                            float part_max, float part_sum, const float* part,
                                            int64_t dim) {
  const float top = *whole_max > part_max ? *whole_max : part_max;
  const float old_factor = power_of_two(splat(*whole_max - top))[0];
  const float factor = power_of_two(splat(part_max - top))[0];
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

template <class Cache>
static void attend_all_splits(const Attention& a, const AttentionTile& tile,
                              const typename Cache::Scratch& s) {
  const int64_t dim = wide(a.value_dim);
  const Parts& p = s.parts;
  const int64_t last = limit_of(tile, tile.rows - 1);
  for (int64_t split = 0; split * kSplit < last; ++split) {
    Cache::attend_split(a, tile, split, s);
    for (int64_t r = 0; r < tile.rows; ++r) {
      if (split * kSplit >= limit_of(tile, r)) continue;
      if (split == 0) {
        p.whole_max[r] = p.part_max[r];
        p.whole_sum[r] = p.part_sum[r];
        __builtin_memcpy(p.whole + r * dim, p.part + r * dim, dim * sizeof(float));
      } else {
        merge(p.whole_max + r, p.whole_sum + r, p.whole + r * dim, p.part_max[r], p.part_sum[r],
              p.part + r * dim, dim);
      }
    }
  }
  for (int64_t r = 0; r < tile.rows; ++r)
    finish_row(a, row_of(tile, r), head_of(tile, r), p.whole_sum[r], p.whole + r * dim);
}

// One split's result, kept until all are there: [max, sum, ..., values].
MULL_INLINE float* kept_split(const Attention& a, const AttentionPlan& plan, float* splits,
                              int64_t row, int64_t head, int64_t split) {
  return splits + ((row * a.heads + head) * plan.splits + split) * (wide(a.value_dim) + W);
}

template <class Cache>
static void attend_one_split(const Attention& a, const AttentionPlan& plan,
                             const AttentionTile& tile, int64_t split,
                             const typename Cache::Scratch& s, float* splits) {
  const int64_t dim = wide(a.value_dim);
  Cache::attend_split(a, tile, split, s);
  for (int64_t r = 0; r < tile.rows; ++r) {
    float* kept = kept_split(a, plan, splits, row_of(tile, r), head_of(tile, r), split);
    kept[0] = s.parts.part_max[r];
    kept[1] = s.parts.part_sum[r];
    __builtin_memcpy(kept + W, s.parts.part + r * dim, dim * sizeof(float));
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

MULL_INLINE int64_t kept_floats(const Attention& a, const AttentionPlan& plan) {
  return plan.side_by_side ? a.rows * a.heads * plan.splits * (wide(a.value_dim) + W) : 0;
}

template <class Cache>
static size_t scratch_of(const Attention& a, int threads) {
  const AttentionPlan plan = plan_attention(a, Cache::kTileRows, threads);
  Arena arena{nullptr, 0};
  for (int i = 0; i < threads; ++i) Cache::lay_out(a, &arena);
  arena.take<float>(kept_floats(a, plan));
  return static_cast<size_t>(arena.used);
}

// `taken` counts the pieces of work handed out; zero at the start.
template <class Cache>
static void attention_of(const Attention& a, int64_t* taken, char* scratch, const Team& team) {
  const AttentionPlan plan = plan_attention(a, Cache::kTileRows, team.size);
  Arena arena{scratch, 0};
  typename Cache::Scratch s{};
  for (int i = 0; i < team.size; ++i) {
    const typename Cache::Scratch other = Cache::lay_out(a, &arena);
    if (i == team.id) s = other;
  }
  float* splits = arena.take<float>(kept_floats(a, plan));
  const int64_t pieces = plan.side_by_side ? plan.items * plan.splits : plan.items;
  for (;;) {
    const int64_t piece = __atomic_fetch_add(taken, 1, __ATOMIC_RELAXED);
    if (piece >= pieces) break;
    const AttentionTile tile = find_tile(a, plan, plan.side_by_side ? piece / plan.splits : piece);
    const int64_t split = plan.side_by_side ? piece % plan.splits : 0;
    if (split * kSplit >= limit_of(tile, tile.rows - 1)) continue;
    Cache::load_queries(a, tile, s);
    if (plan.side_by_side)
      attend_one_split<Cache>(a, plan, tile, split, s, splits);
    else
      attend_all_splits<Cache>(a, tile, s);
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

static size_t attention_scratch(const Attention* a, int threads) {
  if (a->cache_kind == kCacheInt8 && a->is_latent) return scratch_of<Int8Latents>(*a, threads);
  if (a->cache_kind == kCacheInt8) return scratch_of<Int8Cache>(*a, threads);
  return scratch_of<FloatCache<float>>(*a, threads);
}

static void attention_team(const Attention* a, int64_t* taken, char* scratch, const Team& team) {
  if (a->cache_kind == kCacheInt8 && a->is_latent)
    attention_of<Int8Latents>(*a, taken, scratch, team);
  else if (a->cache_kind == kCacheInt8)
    attention_of<Int8Cache>(*a, taken, scratch, team);
  else if (a->cache_kind == kCacheFloat32)
    attention_of<FloatCache<float>>(*a, taken, scratch, team);
  else
    attention_of<FloatCache<uint16_t>>(*a, taken, scratch, team);
}
