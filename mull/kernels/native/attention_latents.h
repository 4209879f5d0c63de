// MLA's latents in an int8 cache: one row per token is the key of all heads, its first value_width
// numbers are the value. A page of 16 tokens holds
//   bytes [4 quads of tokens][padded width / 4][4 tokens][4], signed
//   scales of the value part [16], of the roped part [16]
//   offsets [2][16] int32, -128 times the sum of a part's bytes
// Both parts are padded with zeros to a multiple of 16. A vector of bytes is a share of 4 tokens'
// scores; with the bytes of every 4 x 4 square transposed it is 4 tokens' share in 16 outputs. So
// one copy serves as key and value. The roped part is mixed like the keys of int8_cache.h.

MULL_INLINE int64_t padded_part(int64_t width) { return round_up(width, 16); }

struct LatentPage {
  int64_t value;   // padded width of the value part
  int64_t width;   // of both parts
  int64_t bytes;   // of the page

  const float* scales(const char* page, int part) const {
    return reinterpret_cast<const float*>(page + kPage * width) + part * kPage;
  }
  const char* offsets(const char* page, int part) const {
    return page + kPage * (width + 8) + part * kPage * 4;
  }
};

MULL_INLINE LatentPage latent_page(int64_t width, int64_t value_width) {
  const int64_t value = padded_part(value_width);
  const int64_t padded = value + padded_part(width - value_width);
  return {value, padded, kPage * (padded + 16)};
}

constexpr int64_t kWidestLatent = kWidest + 32;

// One part of a latent or of a query as bytes, mixed if it is the roped one; returns its scale.
MULL_INLINE float quantise_part(const float* from, int64_t width, bool is_roped, int8_t* bytes) {
  float x[kWidest];
  __builtin_memcpy(x, from, width * sizeof(float));
  if (is_roped && width > 0) mix(x, width);
  const float scale = scale_of_row(x, width);
  quantise_row(x, width, scale, bytes);
  for (int64_t i = width; i < padded_part(width); ++i) bytes[i] = 0;
  return scale;
}

static void quantise_latent(const float* x, int64_t width, int64_t value_width, void* cache,
                            int64_t slot, int64_t block_size) {
  const LatentPage layout = latent_page(width, value_width);
  const PageSlot at = find_slot(cache, slot, block_size, 1, 0, layout.bytes);
  int8_t bytes[kWidestLatent];
  const float scales[2] = {
      quantise_part(x, value_width, false, bytes),
      quantise_part(x + value_width, width - value_width, true, bytes + layout.value)};
  char* to = at.page + at.token / 4 * layout.width * 4 + at.token % 4 * 4;
  int32_t offsets[2] = {0, 0};
  for (int64_t i = 0; i < layout.width; i += 4) {
    for (int j = 0; j < 4; ++j) offsets[i >= layout.value] -= 128 * bytes[i + j];
    __builtin_memcpy(to + i * 4, bytes + i, 4);
  }
  char* tail = at.page + kPage * layout.width + at.token * 4;
  for (int part = 0; part < 2; ++part) {
    __builtin_memcpy(tail + part * kPage * 4, scales + part, 4);
    __builtin_memcpy(tail + (2 + part) * kPage * 4, offsets + part, 4);
  }
}

static void write_int8(const CacheRows* w, const Team& team) {
  const int64_t items = w->count * w->heads;
  for (int64_t i = team.first(items); i < team.last(items); ++i) {
    const float* from = w->rows + i * w->width;
    const int64_t slot = w->slots[i / w->heads];
    if (w->role == kLatents)
      quantise_latent(from, w->width, w->value_width, w->cache, slot, w->block_size);
    else
      quantise_head(from, w->width, w->cache, w->role == kKeys, slot, w->block_size, w->heads,
                    i % w->heads);
  }
}

// The bytes of every 4 x 4 square of a 16-byte lane transposed.
MULL_INLINE vi transposed(vi v) {
#if MULL_VECTOR_BYTES == 64
  const __m512i order = _mm512_set4_epi32(0x0f0b0703, 0x0e0a0602, 0x0d090501, 0x0c080400);
  return (vi)_mm512_shuffle_epi8((__m512i)v, order);
#elif MULL_VECTOR_BYTES == 32
  const __m256i order = _mm256_setr_epi32(0x0c080400, 0x0d090501, 0x0e0a0602, 0x0f0b0703, 0x0c080400,
                                          0x0d090501, 0x0e0a0602, 0x0f0b0703);
  return (vi)_mm256_shuffle_epi8((__m256i)v, order);
#else
  int8_t from[16], to[16];
  __builtin_memcpy(from, &v, 16);
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) to[i * 4 + j] = from[j * 4 + i];
  __builtin_memcpy(&v, to, 16);
  return v;
#endif
}

// Of four vectors, one per quad of tokens, the sums over their 16-byte lanes: 16 tokens in order.
MULL_INLINE void fold_lanes(const vi (&quads)[4], vi (&tokens)[16 / W]) {
#if MULL_VECTOR_BYTES == 64
  auto pairs = [](vi a, vi b) {
    return (vi)_mm512_shuffle_i32x4((__m512i)a, (__m512i)b, 0x88) +
           (vi)_mm512_shuffle_i32x4((__m512i)a, (__m512i)b, 0xdd);
  };
  tokens[0] = pairs(pairs(quads[0], quads[1]), pairs(quads[2], quads[3]));
#elif MULL_VECTOR_BYTES == 32
  auto pairs = [](vi a, vi b) {
    return (vi)_mm256_permute2x128_si256((__m256i)a, (__m256i)b, 0x20) +
           (vi)_mm256_permute2x128_si256((__m256i)a, (__m256i)b, 0x31);
  };
  tokens[0] = pairs(quads[0], quads[1]);
  tokens[1] = pairs(quads[2], quads[3]);
#else
  for (int i = 0; i < 4; ++i) tokens[i] = quads[i];
#endif
}

// Rows of a register tile over the quads of a page.
constexpr int kLatentRows = MULL_VECTOR_BYTES == 64 ? 6 : 2;

struct LatentScratch {
  Parts parts;
  Int8Weights weights;
  uint8_t* q;       // [rows, padded width / 4][4 times][4 bytes], zero point 128
  float* q_scales;  // [rows, 2]: of scores in units of log 2
  int8_t* bytes;    // [padded width]
  float* scores;    // [rows, kSplit]
  const char** pages;
};

// scores[r][0 .. 16) += (or =, for the first part) those of one part of the width.
template <int ROWS>
MULL_INLINE void score_part(const LatentScratch& s, const LatentPage& layout, int64_t row, int part,
                            const char* page, float* scores) {
  const int64_t first = part ? layout.value : 0, last = part ? layout.width : layout.value;
  const uint8_t* q = s.q + row * layout.width * 4;
  vi acc[ROWS][4];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int quad = 0; quad < 4; ++quad) acc[r][quad] = vi{};
  for (int64_t i = first; i < last; i += W) {
    vi key[4];
#pragma GCC unroll 4
    for (int quad = 0; quad < 4; ++quad)
      key[quad] = load_ints(page + (quad * layout.width + i) * 4);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const vi query = ready_bytes(load_ints(q + (r * layout.width + i) * 4));
#pragma GCC unroll 4
      for (int quad = 0; quad < 4; ++quad)
        acc[r][quad] = dot4_bytes(acc[r][quad], query, key[quad]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) {
    vi tokens[16 / W];
    fold_lanes(acc[r], tokens);
#pragma GCC unroll 4
    for (int v = 0; v < 16 / W; ++v) {
      if (kOffsetBytes) tokens[v] += load_ints(layout.offsets(page, part) + v * W * 4);
      const vf scale = load(layout.scales(page, part) + v * W) * s.q_scales[(row + r) * 2 + part];
      float* to = scores + r * kSplit + v * W;
      const vf score = to_float(tokens[v]) * scale;
      store(to, part ? load(to) + score : score);
    }
  }
}

template <int ROWS>
static void score_latents(const LatentScratch& s, const LatentPage& layout, int64_t row,
                          const char* page, float* scores) {
  score_part<ROWS>(s, layout, row, 0, page, scores);
  score_part<ROWS>(s, layout, row, 1, page, scores);
}

// out[r][at ..] += one chunk's first pages, weighed, for VECTORS vectors of the value part.
template <int ROWS, int VECTORS>
static void weigh_latents(const LatentScratch& s, const LatentPage& layout, int64_t row,
                          int64_t chunk, int64_t page_count, int64_t out_width, int64_t at) {
  vi acc[ROWS][VECTORS];
  const char* const* pages = s.pages + chunk * kChunkKeys / kPage;
  const uint8_t* weights = s.weights.row(row) + chunk * kChunkKeys;
  weigh_keys(acc, weights, page_count, [&](int64_t page, int quad, int v) {
    return transposed(load_ints(pages[page] + (quad * layout.width + at + v * W) * 4));
  });
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) {
    float* out = s.parts.part + (row + r) * out_width + at;
    const float scale = s.weights.scales[(row + r) * kChunks + chunk];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v)
      store(out + v * W, load(out + v * W) + to_float(acc[r][v]) * scale);
  }
}

struct Int8Latents {
  using Scratch = LatentScratch;
  static constexpr int64_t kTileRows = 16;

  static Scratch lay_out(const Attention& a, Arena* arena) {
    const LatentPage layout = latent_page(a.key_dim, a.value_dim);
    Scratch s;
    s.parts = lay_out_parts(a, kTileRows, arena);
    s.weights = lay_out_weights(kTileRows, arena);
    s.q = arena->take<uint8_t>(kTileRows * layout.width * 4);
    s.q_scales = arena->take<float>(kTileRows * 2);
    s.bytes = arena->take<int8_t>(layout.width);
    s.scores = arena->take<float>(kTileRows * kSplit);
    s.pages = arena->take<const char*>(kSplitPages);
    return s;
  }

  static void load_queries(const Attention& a, const AttentionTile& tile, const Scratch& s) {
    const LatentPage layout = latent_page(a.key_dim, a.value_dim);
    const int64_t roped = a.key_dim - a.value_dim;
    const float scale = a.scale * kLog2E;
    for (int64_t r = 0; r < tile.rows; ++r) {
      const float* q = a.q + row_of(tile, r) * a.q_stride + head_of(tile, r) * a.key_dim;
      s.q_scales[r * 2] = scale * quantise_part(q, a.value_dim, false, s.bytes);
      s.q_scales[r * 2 + 1] =
          roped == 0 ? 0.0f
                     : scale / static_cast<float>(mixed_together(roped)) *
                           quantise_part(q + a.value_dim, roped, true, s.bytes + layout.value);
      uint8_t* to = s.q + r * layout.width * 4;
      for (int64_t i = 0; i < layout.width; i += 4) {
        uint32_t quad;
        __builtin_memcpy(&quad, s.bytes + i, 4);
        quad ^= 0x80808080u;
        for (int copy = 0; copy < 4; ++copy) __builtin_memcpy(to + i * 4 + copy * 4, &quad, 4);
      }
    }
  }

  static __attribute__((noinline)) void attend_split(const Attention& a, const AttentionTile& tile,
                                                     int64_t split, const Scratch& s) {
    const LatentPage layout = latent_page(a.key_dim, a.value_dim);
    const int64_t first = split * kSplit, out_width = wide(a.value_dim);
    const int64_t count = low(kSplit, limit_of(tile, tile.rows - 1) - first);
    each_page(a, tile, first, count, [&](int64_t i, int64_t page) {
      s.pages[i] = static_cast<const char*>(a.key) + page * layout.bytes;
    });
    for (int64_t k = 0; k < count; k += kPage) {
      const char* page = s.pages[k / kPage];
      if (k + kPage < count) ask_for_page(s.pages[k / kPage + 1], layout.bytes);
      by_register_tiles<kLatentRows>(tile.rows, [&](auto height, int64_t r) {
        score_latents<height.count>(s, layout, r, page, s.scores + r * kSplit + k);
      });
    }
    soften_tile(a, tile, first, s.scores, s.pages, kPage * layout.width, s.parts, s.weights);
    for (int64_t chunk = 0; chunk * kChunkKeys < count; ++chunk) {
      const int64_t pages = ceil_div(low(kChunkKeys, count - chunk * kChunkKeys), kPage);
      // Columns outside: a few of a chunk's values stay in the first cache for all rows.
      int64_t at = 0;
      for (; at + kWeighed * W <= out_width; at += kWeighed * W)
        by_register_tiles<kLatentRows>(tile.rows, [&](auto height, int64_t r) {
          weigh_latents<height.count, kWeighed>(s, layout, r, chunk, pages, out_width, at);
        });
      for (; at < out_width; at += W)
        by_register_tiles<kLatentRows>(tile.rows, [&](auto height, int64_t r) {
          weigh_latents<height.count, 1>(s, layout, r, chunk, pages, out_width, at);
        });
    }
  }
};
