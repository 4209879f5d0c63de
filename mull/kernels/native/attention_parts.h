// What attention over every kind of cache shares: tiles of query rows, their partial results, the
// softmax.

constexpr int64_t kSplit = 256;  // keys per split

MULL_INLINE int64_t wide(int64_t n) { return round_up(n, W); }

// Query rows that share one reading of the keys.
struct AttentionTile {
  int64_t b, kv_head, first_head, heads, first_row, rows;  // rows = positions * heads
  int64_t first_limit;  // keys visible to the first position
};

// 32 bits: a 64-bit division takes as long as a dozen multiplications.
MULL_INLINE int64_t quotient(int64_t a, int64_t b) {
  return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
}

MULL_INLINE int64_t row_of(const AttentionTile& tile, int64_t r) {
  return tile.first_row + quotient(r, tile.heads);
}

MULL_INLINE int64_t head_of(const AttentionTile& tile, int64_t r) {
  return tile.first_head + r - quotient(r, tile.heads) * tile.heads;
}

// Keys visible to a row of the tile.
MULL_INLINE int64_t limit_of(const AttentionTile& tile, int64_t r) {
  return tile.first_limit + quotient(r, tile.heads);
}

// Of every row of a tile: maximum (of scores in units of log 2), sum of softmax weights and weighed
// values, of one split and merged.
struct Parts {
  float* part;   // [rows, value_dim padded]
  float* whole;
  float* part_max;
  float* part_sum;
  float* whole_max;
  float* whole_sum;
};

static Parts lay_out_parts(const Attention& a, int64_t rows, Arena* arena) {
  Parts p;
  p.part = arena->take<float>(rows * wide(a.value_dim));
  p.whole = arena->take<float>(rows * wide(a.value_dim));
  p.part_max = arena->take<float>(rows);
  p.part_sum = arena->take<float>(rows);
  p.whole_max = arena->take<float>(rows);
  p.whole_sum = arena->take<float>(rows);
  return p;
}

constexpr float kLog2E = 1.44269504f;

// The larger, and b where one is not a number.
MULL_INLINE vf larger(vf a, vf b) {
#if MULL_VECTOR_BYTES == 64
  return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif MULL_VECTOR_BYTES == 32
  return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (vf)_mm_max_ps((__m128)a, (__m128)b);
#else
  return select((vi)(a > b), a, b);
#endif
}

// 2^x for -0.5 <= x <= 0.5, to 1e-7 of itself.
MULL_INLINE vf power_near_one(vf x) {
  vf p = splat(1.326472731307149e-3f);
  p = p * x + 9.671512991189957e-3f;
  p = p * x + 5.550733581185341e-2f;
  p = p * x + 2.402224242687225e-1f;
  p = p * x + 6.931470036506653e-1f;
  return p * x + 1.0f;
}

// 2^x for x <= 0, as a softmax takes it that has subtracted the maximum; below 1e-38 it may be
// anything as small. NaN stays NaN.
MULL_INLINE vf power_of_two(vf x) {
#if MULL_VECTOR_BYTES == 64
  const vf rest = (vf)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return (vf)_mm512_scalef_ps((__m512)power_near_one(rest), (__m512)(x - rest));
#else
  constexpr float kShift = 12582912.0f + 127.0f;  // leaves the whole part + 127 in the low bits
  const vf y = larger(splat(-126.0f), x);
  const vf shifted = y + kShift;
  return power_near_one(y - (shifted - kShift)) * (vf)((vi)shifted << 23);
#endif
}

MULL_INLINE vf lane_numbers() {
  vf v{};
  for (int i = 0; i < W; ++i) v[i] = static_cast<float>(i);
  return v;
}

// Lanes below `count`.
MULL_INLINE vi first_lanes(int64_t count) {
  return (vi)(lane_numbers() < splat(static_cast<float>(count)));
}

// The largest of a row's scores; those from `count` up to the end of its last vector become -inf.
MULL_INLINE float top_score(float* scores, int64_t count) {
  const int64_t whole = count / W * W;
  if (whole < count)
    store(scores + whole,
          select(first_lanes(count - whole), load(scores + whole), splat(-__builtin_inff())));
  vf best = load(scores);
  for (int64_t i = W; i < count; i += W) best = larger(load(scores + i), best);
  return max_of(best);
}

template <int N>
struct Rows {
  static constexpr int count = N;
};

// work(Rows<height>, first row) for tiles of nearly equal height.
template <int MOST, class Work>
MULL_INLINE void by_register_tiles(int64_t rows, const Work& work) {
  const int64_t tiles = ceil_div(rows, MOST);
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t r = rows * t / tiles, count = rows * (t + 1) / tiles - r;
    switch (count) {
      case 1: work(Rows<1>{}, r); break;
      case 2: work(Rows<2>{}, r); break;
      case 3: if constexpr (MOST >= 3) work(Rows<3>{}, r); break;
      case 4: if constexpr (MOST >= 4) work(Rows<4>{}, r); break;
      case 5: if constexpr (MOST >= 5) work(Rows<5>{}, r); break;
      default: if constexpr (MOST >= 6) work(Rows<6>{}, r);
    }
  }
}
