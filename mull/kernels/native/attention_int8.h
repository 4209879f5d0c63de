// Attention over an int8 cache, see int8_cache.h. Queries are quantised like keys, softmax weights
// times the value's scale to 8 bits without sign per chunk of keys. Dot products are exact whole
// numbers; what is float32 runs per row in one order.

constexpr int64_t kChunkKeys = 64;  // keys whose weights share a scale
constexpr int64_t kChunks = kSplit / kChunkKeys;
constexpr int64_t kSplitPages = kSplit / kPage;
constexpr int kAcross = 4;  // vectors of keys, or of value channels, worked on together
// Rows of a register tile.
constexpr int kRegisterRows = MULL_VECTOR_BYTES == 64 ? 6 : 2;
// For narrow sums weights are kept in two halves, the low four bits and the high.
constexpr int kHalves = kNarrowSums ? 2 : 1;
constexpr int kWeighed = kAcross / kHalves;  // vectors of value channels weighed together

// Softmax weights times the values' scales, as bytes.
struct Int8Weights {
  uint8_t* bytes;  // [rows, kHalves, kSplit]
  float* scales;   // [rows, kChunks]

  uint8_t* row(int64_t r) const { return bytes + r * kHalves * kSplit; }
};

static Int8Weights lay_out_weights(int64_t rows, Arena* arena) {
  Int8Weights w;
  w.bytes = arena->take<uint8_t>(rows * kHalves * kSplit);
  w.scales = arena->take<float>(rows * kChunks);
  return w;
}

struct Int8Scratch {
  Parts parts;
  Int8Weights weights;
  int8_t* q;            // [rows, key_dim]
  float* q_scales;      // [rows]: of scores in units of log 2
  int32_t* q_offsets;   // [rows]: what the zero point of the keys is undone by
  float* scores;        // [rows, kSplit]
  float* mixed;         // [key_dim]
  const char** keys;    // [kSplitPages]
  const char** values;
};

// visit(i, page number) for the pages of `count` keys from `first`, of the tile's key head; up to
// kSplitPages the last page again, so that whole chunks can be read.
template <class Visit>
MULL_INLINE void each_page(const Attention& a, const AttentionTile& tile, int64_t first,
                           int64_t count, const Visit& visit) {
  const int32_t* table = a.paging.block_table + tile.b * a.paging.blocks_per_sequence;
  const int64_t size = a.paging.block_size;
  int64_t block = first / size, inside = first % size, page = 0;
  for (int64_t i = 0; i < kSplitPages; ++i) {
    if (i * kPage < count) {
      page = page_index(table[block], inside, size, a.kv_heads, tile.kv_head);
      inside += kPage;
      if (inside == size) ++block, inside = 0;
    }
    visit(i, page);
  }
}

MULL_INLINE void ask_for_page(const char* page, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(page + i, 0, 2);
}

// scores[r][0 .. kAcross * W) of ROWS queries.
template <int ROWS>
static void score_pages(const Int8Scratch& s, int64_t first_row, int64_t dim, const char* const* pages,
                        float* scores) {
  vi acc[ROWS][kAcross];
  const char* keys[kAcross];
#pragma GCC unroll 4
  for (int v = 0; v < kAcross; ++v) keys[v] = pages[v * W / kPage] + v * W % kPage * 4;
  const int8_t* q = s.q + first_row * dim;
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kAcross; ++v)
      acc[r][v] = kOffsetBytes ? splat(s.q_offsets[first_row + r]) : vi{};
  for (int64_t i = 0; i < dim; i += 4) {
    vi key[kAcross];
#pragma GCC unroll 4
    for (int v = 0; v < kAcross; ++v) key[v] = ready_bytes(load_ints(keys[v] + i * kPage));
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const vi query = splat_quad(q + r * dim + i);
#pragma GCC unroll 4
      for (int v = 0; v < kAcross; ++v) acc[r][v] = dot4_bytes(acc[r][v], key[v], query);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kAcross; ++v) {
    const vf scale = load(reinterpret_cast<const float*>(keys[v] + dim * kPage));
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
      store(scores + r * kSplit + v * W,
            to_float(acc[r][v]) * (scale * s.q_scales[first_row + r]));
  }
}

// sums[r][v] of a chunk's first pages of keys, weighed; value(page, quad, v): bytes of four keys.
template <int ROWS, int VECTORS, class Value>
MULL_INLINE void weigh_keys(vi (&sums)[ROWS][VECTORS], const uint8_t* weights, int64_t pages,
                            const Value& value) {
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) sums[r][v] = vi{};
  constexpr int64_t kAtOnce = kNarrowSums ? 2 : kChunkKeys / kPage;  // as many fit into 16 bits
  for (int64_t first = 0; first < pages; first += kAtOnce) {
    vi narrow[kHalves][ROWS][VECTORS]{};
    const int64_t last = low(first + kAtOnce, pages);
    for (int64_t page = first; page < last; ++page) {
#pragma GCC unroll 4
      for (int quad = 0; quad < kPage / 4; ++quad) {
        vi values[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) values[v] = value(page, quad, v);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 2
          for (int half = 0; half < kHalves; ++half) {
            const uint8_t* at = weights + (r * kHalves + half) * kSplit + page * kPage + quad * 4;
            const vi weight = splat_quad(at);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) {
              if constexpr (kNarrowSums)
                narrow[half][r][v] = add_nibbles_narrow(narrow[half][r][v], weight, values[v]);
              else
                sums[r][v] = dot4_unsigned(sums[r][v], weight, values[v]);
            }
          }
        }
      }
    }
    if constexpr (kNarrowSums) {
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v)
          sums[r][v] += widened(narrow[0][r][v]) + 16 * widened(narrow[kHalves - 1][r][v]);
    }
  }
}

// out[r][at ..] += the values of one chunk's first pages, weighed, for ROWS rows and VECTORS vectors
// of channels.
template <int ROWS, int VECTORS>
static void weigh_pages(const Int8Scratch& s, int64_t first_row, int64_t chunk,
                        int64_t page_count, int64_t dim, int64_t at) {
  vi acc[ROWS][VECTORS];
  const char* const* pages = s.values + chunk * kChunkKeys / kPage;
  const uint8_t* weights = s.weights.row(first_row) + chunk * kChunkKeys;
  weigh_keys(acc, weights, page_count, [&](int64_t page, int quad, int v) {
    return load_ints(pages[page] + (quad * dim + at + v * W) * 4);
  });
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) {
    float* out = s.parts.part + (first_row + r) * wide(dim) + at;
    const float scale = s.weights.scales[(first_row + r) * kChunks + chunk];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v)
      store(out + v * W, load(out + v * W) + to_float(acc[r][v]) * scale);
  }
}

template <int ROWS>
static void weigh_chunk_rows(const Int8Scratch& s, int64_t first_row, int64_t chunk,
                             int64_t page_count, int64_t dim) {
  int64_t at = 0;
  for (; at + kWeighed * W <= dim; at += kWeighed * W)
    weigh_pages<ROWS, kWeighed>(s, first_row, chunk, page_count, dim, at);
  for (; at < dim; at += W) weigh_pages<ROWS, 1>(s, first_row, chunk, page_count, dim, at);
}

// The weights of a chunk, times `inverse`, as whole numbers from 0 to 255.
MULL_INLINE void store_chunk(uint8_t* bytes, const vf (&weights)[kChunkKeys / W], float inverse) {
  vi whole[kChunkKeys / W];
#pragma GCC unroll 4
  for (int v = 0; v < kChunkKeys / W; ++v) whole[v] = to_whole(weights[v] * inverse);
#if MULL_VECTOR_BYTES == 64
  // Packing works within lanes of 16 bytes: it leaves quad i of vector v as dword 4 i + v.
  const __m512i first = _mm512_packus_epi32((__m512i)whole[0], (__m512i)whole[1]);
  const __m512i second = _mm512_packus_epi32((__m512i)whole[2], (__m512i)whole[3]);
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  _mm512_storeu_si512(bytes, _mm512_permutexvar_epi32(order, _mm512_packus_epi16(first, second)));
#else
  int8_t* to = reinterpret_cast<int8_t*>(bytes);
  for (int v = 0; v < kChunkKeys / W; ++v) {
    store_bytes(to + v * W, kNarrowSums ? whole[v] & 15 : whole[v]);
    if (kNarrowSums) store_bytes(to + kSplit + v * W, whole[v] >> 4);
  }
#endif
}

// One chunk of a row: softmax weights of its first `count` keys; those times the values' scales as
// bytes, and what to multiply the bytes with. Returns the weights' sums.
MULL_INLINE vf soften_chunk(const float* scores, int64_t count, float top, const char* const* pages,
                            int64_t scales_at, uint8_t* bytes, float* chunk_scale) {
  constexpr int kVectorsInChunk = kChunkKeys / W;
  vf weighed[kVectorsInChunk], sums{};
  vi largest{};
#pragma GCC unroll 4
  for (int v = 0; v < kVectorsInChunk; ++v) {
    const float* scales =
        reinterpret_cast<const float*>(pages[v * W / kPage] + scales_at) + v * W % kPage;
    vf weight = power_of_two(load(scores + v * W) - top);
    weighed[v] = weight * load(scales);
    if (count < kChunkKeys) {
      // What lies beyond was never written, or belongs to later tokens.
      const vi seen = first_lanes(count - v * W);
      weight = select(seen, weight, vf{});
      weighed[v] = select(seen, weighed[v], vf{});
    }
    sums += weight;
    largest = larger(largest, (vi)weighed[v]);  // none is negative: ordered like the floats
  }
  const int32_t bits = max_of(largest);
  float most;
  __builtin_memcpy(&most, &bits, 4);
  const float inverse = most > 0.0f ? 255.0f / most : 0.0f;
  *chunk_scale = most * (1.0f / 255.0f);
  store_chunk(bytes, weighed, inverse);
  return sums;
}

// A tile's scores [rows, kSplit] of the keys from `first` on into weights, their maximum and sum; the
// values' sums become zero.
static void soften_tile(const Attention& a, const AttentionTile& tile, int64_t first, float* scores,
                        const char* const* pages, int64_t scales_at, const Parts& parts,
                        const Int8Weights& weights) {
  const int64_t dim = wide(a.value_dim);
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t count = low(kSplit, limit_of(tile, r) - first);
    for (int64_t i = 0; i < dim; i += W) store(parts.part + r * dim + i, vf{});
    float top = -__builtin_inff();
    if (count > 0) top = top_score(scores + r * kSplit, count);
    vf sums{};
    for (int64_t chunk = 0; chunk < kChunks; ++chunk) {
      const int64_t at = chunk * kChunkKeys;
      uint8_t* bytes = weights.row(r) + at;
      const int64_t seen = low(kChunkKeys, count - chunk * kChunkKeys);
      if (seen <= 0) {
        // Rows of a tile are weighed together: what a row does not see, it weighs with zeros.
        for (int half = 0; half < kHalves; ++half)
          __builtin_memset(bytes + half * kSplit, 0, kChunkKeys);
        weights.scales[r * kChunks + chunk] = 0.0f;
        continue;
      }
      sums += soften_chunk(scores + r * kSplit + at, seen, top, pages + at / kPage, scales_at,
                           bytes, weights.scales + r * kChunks + chunk);
    }
    parts.part_max[r] = top;
    parts.part_sum[r] = sum(sums);
  }
}

struct Int8Cache {
  using Scratch = Int8Scratch;
  static constexpr int64_t kTileRows = 12;

  static Scratch lay_out(const Attention& a, Arena* arena) {
    Scratch s;
    s.parts = lay_out_parts(a, kTileRows, arena);
    s.q = arena->take<int8_t>(kTileRows * a.key_dim);
    s.q_scales = arena->take<float>(kTileRows);
    s.q_offsets = arena->take<int32_t>(kTileRows);
    s.scores = arena->take<float>(kTileRows * kSplit);
    s.weights = lay_out_weights(kTileRows, arena);
    s.mixed = arena->take<float>(a.key_dim);
    s.keys = arena->take<const char*>(kSplitPages);
    s.values = arena->take<const char*>(kSplitPages);
    return s;
  }

  static void load_queries(const Attention& a, const AttentionTile& tile, const Scratch& s) {
    const float scale = a.scale * kLog2E / static_cast<float>(mixed_together(a.key_dim));
    for (int64_t r = 0; r < tile.rows; ++r) {
      const float* q = a.q + row_of(tile, r) * a.q_stride + head_of(tile, r) * a.key_dim;
      __builtin_memcpy(s.mixed, q, a.key_dim * sizeof(float));
      mix(s.mixed, a.key_dim);
      const float row_scale = scale_of_row(s.mixed, a.key_dim);
      int8_t* bytes = s.q + r * a.key_dim;
      quantise_row(s.mixed, a.key_dim, row_scale, bytes);
      int32_t total = 0;
      for (int64_t i = 0; i < a.key_dim; ++i) total += bytes[i];
      s.q_scales[r] = row_scale * scale;
      s.q_offsets[r] = -128 * total;
    }
  }

  static __attribute__((noinline)) void attend_split(const Attention& a, const AttentionTile& tile,
                                                     int64_t split, const Scratch& s) {
    const int64_t first = split * kSplit;
    const int64_t count = low(kSplit, limit_of(tile, tile.rows - 1) - first);
    const int64_t key_bytes = page_bytes(a.key_dim), value_bytes = page_bytes(a.value_dim);
    each_page(a, tile, first, count, [&](int64_t i, int64_t page) {
      s.keys[i] = static_cast<const char*>(a.key) + page * key_bytes;
      s.values[i] = static_cast<const char*>(a.value) + page * value_bytes;
    });
    for (int64_t k = 0; k < count; k += kAcross * W) {
      by_register_tiles<kRegisterRows>(tile.rows, [&](auto height, int64_t r) {
        score_pages<height.count>(s, r, a.key_dim, s.keys + k / kPage, s.scores + r * kSplit + k);
      });
    }
    soften_tile(a, tile, first, s.scores, s.values, a.value_dim * kPage, s.parts, s.weights);
    for (int64_t chunk = 0; chunk * kChunkKeys < count; ++chunk) {
      const int64_t pages = ceil_div(low(kChunkKeys, count - chunk * kChunkKeys), kPage);
      by_register_tiles<kRegisterRows>(tile.rows, [&](auto height, int64_t r) {
        weigh_chunk_rows<height.count>(s, r, chunk, pages, a.value_dim);
      });
    }
  }
};
