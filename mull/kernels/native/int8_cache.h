// The int8 cache. Sixteen tokens of one key head make a page; a block of a multiple of 16 tokens
// holds the pages of its first key head, then those of the next. All rows are symmetric, from -127
// to 127 times a float32 scale of their own, so writing a token changes no other.
//   keys    bytes [width / 4][16 tokens][4] with zero point 128, scales [16]
//   values  bytes [4 quads of tokens][width][4 tokens] signed, scales [16]
// One vector of key bytes is a quarter dot product of 16 tokens, one of value bytes four tokens'
// share in 16 outputs. Keys are stored multiplied by a Hadamard matrix, and queries are multiplied alike
// before they are quantised: scores stay the same, but no channel stands out (with outliers left in,
// the KL divergence of SmolLM2 is four times as large).

constexpr int64_t kPage = 16;

MULL_INLINE int64_t page_bytes(int64_t width) { return kPage * (width + 4); }

struct PageSlot {
  char* page;
  int64_t token;  // within the page
};

MULL_INLINE int64_t page_index(int64_t block, int64_t inside, int64_t block_size, int64_t heads,
                               int64_t head) {
  return (block * heads + head) * (block_size / kPage) + inside / kPage;
}

MULL_INLINE PageSlot find_slot(void* cache, int64_t slot, int64_t block_size, int64_t heads,
                               int64_t head, int64_t bytes) {
  const int64_t inside = slot % block_size;
  const int64_t page = page_index(slot / block_size, inside, block_size, heads, head);
  return {static_cast<char*>(cache) + page * bytes, inside % kPage};
}

// x[n] (n a power of two) times the Hadamard matrix, not normalised: sums and differences of
// neighbours, log2(n) times. `spare` holds n floats as well.
static void hadamard(float* x, int64_t n, float* spare) {
  float *from = x, *to = spare;
  for (int64_t done = 1; done < n; done *= 2) {
    if (n >= 2 * W) {
      for (int64_t i = 0; i < n; i += 2 * W) {
        const vf a = load(from + i), b = load(from + i + W);
        const vf even = evens(a, b), odd = odds(a, b);
        store(to + i / 2, even + odd);
        store(to + (n + i) / 2, even - odd);
      }
    } else {
      for (int64_t i = 0; i < n; i += 2) {
        to[i / 2] = from[i] + from[i + 1];
        to[(n + i) / 2] = from[i] - from[i + 1];
      }
    }
    float* last = from;
    from = to;
    to = last;
  }
  if (from != x) __builtin_memcpy(x, from, n * sizeof(float));
}

// Numbers mixed together: the largest power of two in `width`.
MULL_INLINE int64_t mixed_together(int64_t width) { return width & -width; }

constexpr int64_t kMostMixed = 1024;

// As keys are stored and queries compared with them; a product of two is mixed_together() times as
// large as before.
static void mix(float* x, int64_t width) {
  float spare[kMostMixed];
  const int64_t n = low(mixed_together(width), kMostMixed);
  for (int64_t i = 0; i < width; i += n) hadamard(x + i, n, spare);
}

// Scale of a row, NaN or infinite if it holds such a number.
MULL_INLINE float scale_of_row(const float* x, int64_t width) {
  vi largest{};
  int64_t i = 0;
  for (; i + W <= width; i += W) {
    const vi magnitude = load_ints(x + i) & 0x7fffffff;  // ordered like the floats, NaN on top
    largest = larger(largest, magnitude);
  }
  int32_t best = max_of(largest);
  for (; i < width; ++i) {
    int32_t bits;
    __builtin_memcpy(&bits, x + i, 4);
    bits &= 0x7fffffff;
    best = bits > best ? bits : best;
  }
  float top;
  __builtin_memcpy(&top, &best, 4);
  return top * (1.0f / 127.0f);
}

MULL_INLINE float inverse_of(float scale) { return scale > 0.0f ? 1.0f / scale : 0.0f; }

// bytes[i] = x[i] / scale, to the nearest whole number.
static void quantise_row(const float* x, int64_t width, float scale, int8_t* bytes) {
  const float inverse = inverse_of(scale);
  int64_t i = 0;
  for (; i + W <= width; i += W) store_bytes(bytes + i, to_whole(load(x + i) * inverse));
  for (; i < width; ++i) bytes[i] = static_cast<int8_t>(to_whole(splat(x[i] * inverse))[0]);
}

constexpr int64_t kWidest = 1024;  // most numbers in a row of the int8 cache

static void quantise_key(const float* from, int64_t width, const PageSlot& at) {
  float x[kWidest];
  int8_t bytes[kWidest];
  __builtin_memcpy(x, from, width * sizeof(float));
  mix(x, width);
  const float scale = scale_of_row(x, width);
  quantise_row(x, width, scale, bytes);
  for (int64_t i = 0; i < width; i += 4) {
    uint32_t quad;
    __builtin_memcpy(&quad, bytes + i, 4);
    quad ^= 0x80808080u;
    __builtin_memcpy(at.page + i * kPage + at.token * 4, &quad, 4);
  }
  __builtin_memcpy(at.page + width * kPage + at.token * 4, &scale, 4);
}

static void quantise_value(const float* x, int64_t width, const PageSlot& at) {
  int8_t bytes[kWidest];
  const float scale = scale_of_row(x, width);
  quantise_row(x, width, scale, bytes);
  char* to = at.page + at.token / 4 * width * 4 + at.token % 4;
  for (int64_t i = 0; i < width; ++i) to[i * 4] = static_cast<char>(bytes[i]);
  __builtin_memcpy(at.page + width * kPage + at.token * 4, &scale, 4);
}

// One token's key or value of one key head.
static void quantise_head(const float* x, int64_t width, void* cache, bool is_key, int64_t slot,
                          int64_t block_size, int64_t heads, int64_t head) {
  const PageSlot at = find_slot(cache, slot, block_size, heads, head, page_bytes(width));
  if (is_key)
    quantise_key(x, width, at);
  else
    quantise_value(x, width, at);
}
