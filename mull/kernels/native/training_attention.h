// Causal attention inside short sequences, forward and backward. A thread takes a sequence and a
// head of keys at a time; tiles of query rows go over the keys they may see, so that the scores of
// a tile stay in the cache and nothing behind the diagonal is reckoned but the tile's own corner.

#if MULL_VECTOR_BYTES == 64
constexpr int kProductRows = 12;  // accumulators fill the registers: rows x 2 vectors
#else
constexpr int kProductRows = 6;
#endif
constexpr int64_t kQueryTile = 24;

// c[m, n] = factor * sum over k of a[m am + k ak] * b[k, n] (+ c where `adds`); N vectors wide.
template <int M, int N>
MULL_INLINE void product_tile(const float* a, int64_t am, int64_t ak, const float* b, int64_t bs,
                              float* c, int64_t cs, int64_t depth, float factor, bool adds) {
  vf acc[M][N] = {};
  for (int64_t k = 0; k < depth; ++k, a += ak, b += bs) {
    vf columns[N];
    for (int n = 0; n < N; ++n) columns[n] = load(b + n * W);
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) {
      const vf x = splat(a[m * am]);
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) acc[m][n] += x * columns[n];
    }
  }
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) {
      float* to = c + m * cs + n * W;
      store(to, adds ? load(to) + acc[m][n] * factor : acc[m][n] * factor);
    }
}

struct ProductOf {
  const float* a;
  int64_t am, ak;
  const float* b;
  int64_t bs;
  float* c;
  int64_t cs;
  float factor;
  bool adds;
};

template <int N>
MULL_INLINE void product_columns(const ProductOf& p, int64_t rows, int64_t depth, int64_t column) {
  const float* b = p.b + column;
  float* c = p.c + column;
  int64_t m = 0;
  for (; m + kProductRows <= rows; m += kProductRows)
    product_tile<kProductRows, N>(p.a + m * p.am, p.am, p.ak, b, p.bs, c + m * p.cs, p.cs, depth,
                                  p.factor, p.adds);
  for (; m + 3 <= rows; m += 3)
    product_tile<3, N>(p.a + m * p.am, p.am, p.ak, b, p.bs, c + m * p.cs, p.cs, depth, p.factor,
                       p.adds);
  for (; m < rows; ++m)
    product_tile<1, N>(p.a + m * p.am, p.am, p.ak, b, p.bs, c + m * p.cs, p.cs, depth, p.factor,
                       p.adds);
}

// columns: a multiple of W.
static void small_product(const ProductOf& p, int64_t rows, int64_t columns, int64_t depth) {
  int64_t n = 0;
  for (; n + 2 * W <= columns; n += 2 * W) product_columns<2>(p, rows, depth, n);
  if (n < columns) product_columns<1>(p, rows, depth, n);
}

// to[c, j] = rows[j, c] in lines `padded` floats apart, zeros up to a whole vector.
static void transposed(const float* rows, int64_t stride, int64_t count, int64_t width, float* to,
                       int64_t padded) {
  for (int64_t c = 0; c < width; ++c) {
    float* line = to + c * padded;
    for (int64_t j = 0; j < count; ++j) line[j] = rows[j * stride + c];
    for (int64_t j = count; j < round_up(count, W); ++j) line[j] = 0.0f;
  }
}

// One sequence and one head of keys.
struct AttentionItem {
  int64_t length, padded, first, out_first, group;
  float *keys, *values;       // transposed, [width, padded]
  float *weights, *of_scores;  // [kQueryTile, padded]
};

// Scores of query rows [begin, begin + rows) of a head, scaled, to item.weights; how many columns.
static int64_t tile_scores(const ShortAttention& a, const AttentionItem& item, int64_t head,
                           int64_t begin, int64_t rows) {
  const int64_t columns = round_up(begin + rows, W);
  const float* query =
      a.query + (item.first + begin) * a.query_stride + head * a.query_head_stride;
  small_product({query, a.query_stride, 1, item.keys, item.padded, item.weights, item.padded,
                 a.scale, false},
                rows, columns, a.key_dim);
  return columns;
}

// exp(score - top) of the first `seen` columns, zero after them; their sum.
MULL_INLINE float weigh_row(float* row, int64_t seen, int64_t columns, float top) {
  vf sums{};
  for (int64_t j = 0; j < columns; j += W) {
    vf weight = vf{};
    if (j < seen) {
      weight = exponential(load(row + j) - top);
      if (j + W > seen) weight = select(first_lanes(seen - j), weight, vf{});
    }
    store(row + j, weight);
    sums += weight;
  }
  return sum(sums);
}

static void attend_item(const ShortAttention& a, const AttentionItem& item) {
  const int64_t repeats = a.heads / a.groups;
  const float* value = a.value + item.first * a.value_stride + item.group * a.value_head_stride;
  for (int64_t head = item.group * repeats; head < (item.group + 1) * repeats; ++head)
    for (int64_t begin = 0; begin < item.length; begin += kQueryTile) {
      const int64_t rows = low(kQueryTile, item.length - begin);
      const int64_t columns = tile_scores(a, item, head, begin, rows);
      const int64_t out_row = (item.out_first + begin) * a.heads + head;
      for (int64_t m = 0; m < rows; ++m) {
        float* row = item.weights + m * item.padded;
        const int64_t seen = begin + m + 1, kept = out_row + m * a.heads;
        float best = row[0];
        vf most = splat(best);
        int64_t j = 0;
        for (; j + W <= seen; j += W) most = larger(load(row + j), most);
        for (best = max_of(most); j < seen; ++j) best = high(best, row[j]);
        a.top[kept] = best;
        const float inverse = 1.0f / weigh_row(row, seen, columns, best);
        a.inverse[kept] = inverse;
        for (j = 0; j < columns; j += W) store(row + j, load(row + j) * inverse);
      }
      small_product({item.weights, item.padded, 1, value, a.value_stride,
                     a.out + out_row * a.value_dim, a.heads * a.value_dim, 1.0f, false},
                    rows, a.value_dim, begin + rows);
    }
}

// Softmax weights once more, and from them and the gradient of each the gradients of the scores.
static void score_gradients(const ShortAttention& a, const AttentionItem& item, int64_t begin,
                            int64_t rows, int64_t columns, int64_t out_row) {
  for (int64_t m = 0; m < rows; ++m) {
    float *row = item.weights + m * item.padded, *of_row = item.of_scores + m * item.padded;
    const int64_t kept = out_row + m * a.heads;
    const float inverse = a.inverse[kept];
    weigh_row(row, begin + m + 1, columns, a.top[kept]);
    vf sums{};
    for (int64_t j = 0; j < columns; j += W) {
      const vf weight = load(row + j) * inverse;
      store(row + j, weight);
      sums += weight * load(of_row + j);
    }
    const float mean = sum(sums);
    for (int64_t j = 0; j < columns; j += W)
      store(of_row + j, load(row + j) * (load(of_row + j) - mean) * a.scale);
  }
}

static void attend_item_backward(const ShortAttention& a, const AttentionItem& item) {
  const int64_t repeats = a.heads / a.groups, dim = a.key_dim, out_dim = a.value_dim;
  const float* key = a.key + item.first * a.key_stride + item.group * a.key_head_stride;
  float* of_key = a.of_key + (item.first * a.groups + item.group) * dim;
  float* of_value = a.of_value + (item.first * a.groups + item.group) * out_dim;
  for (int64_t j = 0; j < item.length; ++j) {
    for (int64_t c = 0; c < dim; ++c) of_key[j * a.groups * dim + c] = 0.0f;
    for (int64_t c = 0; c < out_dim; ++c) of_value[j * a.groups * out_dim + c] = 0.0f;
  }
  for (int64_t head = item.group * repeats; head < (item.group + 1) * repeats; ++head)
    for (int64_t begin = 0; begin < item.length; begin += kQueryTile) {
      const int64_t rows = low(kQueryTile, item.length - begin), seen = begin + rows;
      const int64_t columns = tile_scores(a, item, head, begin, rows);
      const int64_t out_row = (item.out_first + begin) * a.heads + head;
      const float* upstream = a.upstream + out_row * out_dim;
      const float* query =
          a.query + (item.first + begin) * a.query_stride + head * a.query_head_stride;
      const int64_t out_stride = a.heads * out_dim, padded = item.padded;
      small_product({upstream, out_stride, 1, item.values, padded, item.of_scores, padded, 1.0f,
                     false},
                    rows, columns, out_dim);
      score_gradients(a, item, begin, rows, columns, out_row);
      small_product({item.of_scores, padded, 1, key, a.key_stride,
                     a.of_query + ((item.first + begin) * a.heads + head) * dim, a.heads * dim,
                     1.0f, false},
                    rows, dim, seen);
      small_product({item.weights, 1, padded, upstream, out_stride, of_value, a.groups * out_dim,
                     1.0f, true},
                    seen, out_dim, rows);
      small_product({item.of_scores, 1, padded, query, a.query_stride, of_key, a.groups * dim, 1.0f,
                     true},
                    seen, dim, rows);
    }
}

// Floats from one line of a thread's memory to the next: room for the longest sequence, and no power
// of two, of which all lines would fall into a few sets of the cache.
MULL_INLINE int64_t line_floats(const ShortAttention& a) {
  int64_t longest = 0;
  for (int64_t n = 0; n < a.sequences; ++n) longest = high(longest, a.lengths[n]);
  return round_up(longest, 16) + 16;
}

static AttentionItem lay_out_item(const ShortAttention& a, Arena* arena) {
  AttentionItem item{};
  item.padded = line_floats(a);
  item.keys = arena->take<float>(a.key_dim * item.padded);
  item.weights = arena->take<float>(kQueryTile * item.padded);
  item.values = arena->take<float>(a.upstream ? a.value_dim * item.padded : 0);
  item.of_scores = arena->take<float>(a.upstream ? kQueryTile * item.padded : 0);
  return item;
}

static size_t short_attention_scratch(const ShortAttention* a, int threads) {
  Arena arena{nullptr, 0};
  lay_out_item(*a, &arena);
  return static_cast<size_t>(threads * arena.used);
}

static void short_attention_team(const ShortAttention* a, int64_t* taken, char* scratch,
                                 const Team& team) {
  const int64_t own = static_cast<int64_t>(short_attention_scratch(a, 1));
  Arena arena{scratch + own * team.id, 0};
  AttentionItem item = lay_out_item(*a, &arena);
  const int64_t items = a->sequences * a->groups;
  int64_t sequence = 0;
  for (;;) {
    const int64_t taking = __atomic_fetch_add(taken, 1, __ATOMIC_RELAXED);
    if (taking >= items) return;
    for (; sequence < taking / a->groups; ++sequence) item.out_first += a->lengths[sequence];
    item.group = taking % a->groups;
    item.length = a->lengths[sequence];
    item.first = a->firsts[sequence];
    transposed(a->key + item.first * a->key_stride + item.group * a->key_head_stride,
               a->key_stride, item.length, a->key_dim, item.keys, item.padded);
    if (!a->upstream) {
      attend_item(*a, item);
      continue;
    }
    transposed(a->value + item.first * a->value_stride + item.group * a->value_head_stride,
               a->value_stride, item.length, a->value_dim, item.values, item.padded);
    attend_item_backward(*a, item);
  }
}
