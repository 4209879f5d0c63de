// Products with q8 and q4 weights. Activations are quantised to int8 per group of 32, so that dot
// products within a group are exact whole numbers; the groups are added up in float32, in order.

constexpr int64_t kGroup = 32;

// Where the processor fuses multiply and add, dot products are counted from the bits of the float
// 1.5 * 2^23: the result, read as a float, is that number plus the dot product, and one fused
// operation takes the number away again and applies the scale. Exact, because |dot| < 2^22 and
// scales have 16 bits, so that 1.5 * 2^23 * scale is a float.
#if defined(__FMA__) || defined(__aarch64__)
constexpr int32_t kStartBits = 0x4b400000;
#else
constexpr int32_t kStartBits = 0;
#endif
constexpr float kStart = 12582912.0f;

// 32 activations of a row, as whole numbers from -127 to 127 times `scale`.
struct Group {
  int8_t values[kGroup];
  float scale;
  float start_scale;  // -kStart * scale
  float total;        // scale * sum of the values: what minimums of q4 weights are multiplied by
  int32_t start;      // kStartBits - 128 * sum of the values: undoes the zero point of q8 weights
};

// dot * scale, rounded once; dots are counted from kStartBits.
MULL_INLINE vf scaled(vi dots, const Group& group) {
#if defined(__FMA__) && MULL_VECTOR_BYTES == 64
  return (vf)_mm512_fmadd_ps((__m512)dots, (__m512)splat(group.scale), (__m512)splat(group.start_scale));
#elif defined(__FMA__) && MULL_VECTOR_BYTES == 32
  return (vf)_mm256_fmadd_ps((__m256)dots, (__m256)splat(group.scale), (__m256)splat(group.start_scale));
#elif defined(__aarch64__)
  return (vf)vfmaq_f32((float32x4_t)splat(group.start_scale), (float32x4_t)dots, (float32x4_t)splat(group.scale));
#else
  return to_float(dots) * group.scale;
#endif
}

MULL_INLINE int64_t groups_of(int64_t k) { return round_up(k, 2 * kGroup) / kGroup; }
MULL_INLINE int64_t pair_bytes(int32_t kind) { return kind == kQ8 ? 64 + 1024 : 128 + 512; }

// Rounded to 16 bits.
MULL_INLINE float shortened(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  if (x - x == 0.0f) bits = (bits + 0x80u) & 0xffffff00u;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}

// NaN and infinity in a group make its scale NaN or infinite, and so every product with it.
MULL_INLINE void quantise_group(const float* x, Group* group) {
  constexpr int kVectorsInGroup = kGroup / W;
  vf v[kVectorsInGroup];
  vi largest{};
#pragma GCC unroll 8
  for (int j = 0; j < kVectorsInGroup; ++j) {
    v[j] = load(x + j * W);
    const vi magnitude = (vi)v[j] & 0x7fffffff;  // ordered like the floats, NaN above infinity
    const vi more = magnitude > largest;
    largest = (magnitude & more) | (largest & ~more);
  }
  const int32_t bits = max_of(largest);
  float top;
  __builtin_memcpy(&top, &bits, 4);
  const float inverse = top > 0.0f ? 127.0f / top : 0.0f;
  vu sums{};  // where a value is NaN they wrap around
#pragma GCC unroll 8
  for (int j = 0; j < kVectorsInGroup; ++j) {
    const vi whole = to_whole(v[j] * inverse);
    store_bytes(group->values + j * W, whole);
    sums += (vu)whole;
  }
  const uint32_t total = sum(sums);
  group->scale = shortened(top * (1.0f / 127.0f));
  group->start_scale = -kStart * group->scale;
  group->total = group->scale * static_cast<float>(static_cast<int32_t>(total));
  group->start = static_cast<int32_t>(kStartBits - 128 * total);
}

#if MULL_VECTOR_BYTES == 64
// Each of four vectors folded to one number.
template <class Fold>
MULL_INLINE __m128i fold_four(const __m512i (&v)[4], const Fold& fold) {
  const __m512i a = fold(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
  const __m512i b = fold(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
  __m512i all = fold(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
  all = fold(all, _mm512_shuffle_i64x2(all, all, 0x4e));
  all = fold(all, _mm512_shuffle_i64x2(all, all, 0xb1));
  return _mm512_castsi512_si128(all);
}

// `quantise_group` of N groups (2 or 4) after each other, to the same bits: what is done once a
// group (folds, a division, scales) is done for all at a time.
template <int N>
MULL_INLINE void quantise_groups(const float* x, Group* groups) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512 v[N][2];
  __m512i largest[4], sums[4];
#pragma GCC unroll 4
  for (int g = 0; g < N; ++g) {
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) v[g][j] = _mm512_loadu_ps(x + g * kGroup + j * 16);
    largest[g] = _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(v[g][0]), magnitude),
                                  _mm512_and_si512(_mm512_castps_si512(v[g][1]), magnitude));
  }
  for (int g = N; g < 4; ++g) largest[g] = largest[g - N];
  const __m128 top = _mm_castsi128_ps(
      fold_four(largest, [](__m512i a, __m512i b) { return _mm512_max_epi32(a, b); }));
  const __m128 zero = _mm_setzero_ps();
  const __mmask8 some = _mm_cmp_ps_mask(top, zero, _CMP_GT_OQ);
  const __m128 inverse = _mm_maskz_div_ps(some, _mm_set1_ps(127.0f), top);
#pragma GCC unroll 4
  for (int g = 0; g < N; ++g) {
    const __m512 factor =
        _mm512_permutexvar_ps(_mm512_set1_epi32(g), _mm512_castps128_ps512(inverse));
    __m512i whole[2];
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      whole[j] = _mm512_cvtps_epi32(_mm512_mul_ps(v[g][j], factor));
      store_bytes(groups[g].values + j * 16, (vi)whole[j]);
    }
    sums[g] = _mm512_add_epi32(whole[0], whole[1]);
  }
  for (int g = N; g < 4; ++g) sums[g] = sums[g - N];
  const __m128i total =
      fold_four(sums, [](__m512i a, __m512i b) { return _mm512_add_epi32(a, b); });
  __m128 scale = _mm_mul_ps(top, _mm_set1_ps(1.0f / 127.0f));
  const __mmask8 finite = _mm_cmp_ps_mask(_mm_sub_ps(scale, scale), zero, _CMP_EQ_OQ);
  const __m128i bits = _mm_castps_si128(scale);
  scale = _mm_castsi128_ps(_mm_mask_and_epi32(
      bits, finite, _mm_add_epi32(bits, _mm_set1_epi32(0x80)), _mm_set1_epi32(~0xff)));
  const __m128 start_scale = _mm_mul_ps(_mm_set1_ps(-kStart), scale);
  const __m128 weighted = _mm_mul_ps(scale, _mm_cvtepi32_ps(total));
  const __m128i start = _mm_sub_epi32(_mm_set1_epi32(kStartBits), _mm_slli_epi32(total, 7));
  __m128 rows[4] = {scale, start_scale, weighted, _mm_castsi128_ps(start)};
  _MM_TRANSPOSE4_PS(rows[0], rows[1], rows[2], rows[3]);
#pragma GCC unroll 4
  for (int g = 0; g < N; ++g) _mm_storeu_ps(&groups[g].scale, rows[g]);
}
#endif

// Values [first, first + count) of a row, `first` a multiple of 32; the last group is filled up
// with zeros.
static void quantise_span(const float* x, int64_t first, int64_t count, void* row) {
  Group* group = static_cast<Group*>(row) + first / kGroup;
  int64_t i = 0;
#if MULL_VECTOR_BYTES == 64
  for (; i + 4 * kGroup <= count; i += 4 * kGroup, group += 4) quantise_groups<4>(x + i, group);
  for (; i + 2 * kGroup <= count; i += 2 * kGroup, group += 2) quantise_groups<2>(x + i, group);
#endif
  for (; i + kGroup <= count; i += kGroup) quantise_group(x + i, group++);
  if (i == count) return;
  float rest[kGroup] = {};
  for (int64_t j = 0; i + j < count; ++j) rest[j] = x[i + j];
  quantise_group(rest, group);
}

// How the bytes of a strip of weights lie.
enum Weights { kBytes, kNibbles, kUnpacked };  // kUnpacked: nibbles spread to bytes beforehand

template <Weights KIND>
MULL_INLINE vi load_weights(const char* from, int half) {
  const vi bytes = load_ints(from);
  if constexpr (KIND == kBytes) return ready_bytes(bytes);
  if constexpr (KIND == kNibbles)
    return (half ? (vi)((vu)bytes >> 4) : bytes) & 0x0f0f0f0f;
  return bytes;
}

// Where a strip of panels lies: its packed pairs of groups and, for kUnpacked, its spread bytes.
struct Strip {
  const char* packed;
  int64_t panel_bytes;
  const char* spread;
  int64_t spread_panel_bytes;
};

// Sums of a group in 16 bits, which start at zero and not at kStartBits.
template <Weights KIND>
constexpr bool kIsNarrow = kNarrowSums && KIND != kBytes;

// With sixteen registers a group in one piece is compiled into copies to memory and back.
constexpr int kQuadsAtOnce = MULL_VECTOR_BYTES == 32 ? 2 : 8;

// dots = or += four values of each row times the weights of them; `is_first`: =.
template <int M, int P, Weights KIND>
MULL_INLINE void quad_dots(vi (&dots)[M][P * kVectors], const Group* const (&rows)[M],
                           const char* const (&weights)[P], int half, int quad, bool is_first) {
  vi w[P * kVectors];
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      w[p * kVectors + v] = load_weights<KIND>(weights[p] + quad * 64 + v * W * 4, half);
  }
#pragma GCC unroll 24
  for (int m = 0; m < M; ++m) {
    const vi a = splat_quad(rows[m]->values + quad * 4);
#pragma GCC unroll 8
    for (int j = 0; j < P * kVectors; ++j) {
      if constexpr (KIND == kBytes)
        dots[m][j] = dot4_bytes(dots[m][j], w[j], a);
      else if constexpr (kIsNarrow<KIND>)
        dots[m][j] = is_first ? nibbles_narrow(w[j], a) : add_nibbles_narrow(dots[m][j], w[j], a);
      else
        dots[m][j] = dot4_nibbles(dots[m][j], w[j], a);
    }
  }
}

template <int M, int P, Weights KIND>
MULL_INLINE void group_dots(vi (&dots)[M][P * kVectors], const Group* const (&rows)[M],
                            const char* const (&weights)[P], int half) {
  if constexpr (kIsNarrow<KIND>) {
    // Weights of both halves come from the same bytes: read twice, they need no registers between.
    asm volatile("" ::: "memory");
    quad_dots<M, P, KIND>(dots, rows, weights, half, 0, true);
    quad_dots<M, P, KIND>(dots, rows, weights, half, 1, false);
  } else {
#pragma GCC unroll 24
    for (int m = 0; m < M; ++m) {
      const vi start = splat(KIND == kBytes && kOffsetBytes ? rows[m]->start : kStartBits);
#pragma GCC unroll 8
      for (int j = 0; j < P * kVectors; ++j) dots[m][j] = start;
    }
  }
#pragma GCC unroll kQuadsAtOnce
  for (int quad = kIsNarrow<KIND> ? 2 : 0; quad < 8; ++quad)
    quad_dots<M, P, KIND>(dots, rows, weights, half, quad, false);
  if constexpr (kIsNarrow<KIND>) {
#pragma GCC unroll 24
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
      for (int j = 0; j < P * kVectors; ++j) dots[m][j] = widened(dots[m][j]);
  }
}

// acc += one pair of groups.
template <int M, int P, Weights KIND>
MULL_INLINE void add_pair(vf (&acc)[M][P * kVectors], const Group* const (&rows)[M],
                          const Strip& strip, int64_t pair) {
  constexpr int32_t kKind = KIND == kBytes ? kQ8 : kQ4;
  constexpr int64_t kHeader = KIND == kBytes ? 64 : 128;
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const char* blocks[P];
    const char* weights[P];
    const Group* groups[M];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      blocks[p] = strip.packed + p * strip.panel_bytes + pair * pair_bytes(kKind);
      if constexpr (KIND == kUnpacked)
        weights[p] = strip.spread + p * strip.spread_panel_bytes + pair * 1024 + half * 512;
      else
        weights[p] = blocks[p] + kHeader + (KIND == kBytes ? half * 512 : 0);
    }
#pragma GCC unroll 24
    for (int m = 0; m < M; ++m) groups[m] = rows[m] + half;
    vi dots[M][P * kVectors];
    group_dots<M, P, KIND>(dots, groups, weights, half);
    vf scales[P * kVectors];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        scales[p * kVectors + v] =
            load_half(reinterpret_cast<const uint16_t*>(blocks[p] + half * 32) + v * W);
#pragma GCC unroll 24
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
      for (int j = 0; j < P * kVectors; ++j)
        acc[m][j] += scales[j] * (kIsNarrow<KIND> ? to_float(dots[m][j]) * groups[m]->scale
                                                  : scaled(dots[m][j], *groups[m]));
    if constexpr (KIND != kBytes) {
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v)
          scales[p * kVectors + v] =
              load_half(reinterpret_cast<const uint16_t*>(blocks[p] + 64 + half * 32) + v * W);
#pragma GCC unroll 24
      for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
        for (int j = 0; j < P * kVectors; ++j) acc[m][j] += groups[m]->total * scales[j];
    }
  }
}

// `ahead`: weights to ask memory for meanwhile, or null.
template <int M, int P, Weights KIND>
MULL_INLINE void accumulate_quantised(vf (&acc)[M][P * kVectors], const char* x, int64_t row_bytes,
                                      const Strip& strip, int64_t first, int64_t last,
                                      const char* ahead) {
  constexpr int64_t kAheadBytes = P * (KIND == kBytes ? 64 + 1024 : 128 + 512);
  for (int64_t pair = first; pair < last; ++pair) {
    const Group* rows[M];
#pragma GCC unroll 24
    for (int m = 0; m < M; ++m)
      rows[m] = reinterpret_cast<const Group*>(x + m * row_bytes) + 2 * pair;
    if (ahead) {
      for (int64_t i = 0; i < kAheadBytes; i += 64) __builtin_prefetch(ahead + i, 0, 2);
      ahead += kAheadBytes;
    }
    add_pair<M, P, KIND>(acc, rows, strip, pair);
  }
}

// The nibbles of pairs [first, last) of P panels, a byte each.
template <int P>
static void spread_nibbles(const Strip& strip, int64_t first, int64_t last, char* to) {
  for (int p = 0; p < P; ++p) {
    char* out = to + p * strip.spread_panel_bytes;
    for (int64_t pair = first; pair < last; ++pair) {
      const char* from = strip.packed + p * strip.panel_bytes + pair * pair_bytes(kQ4) + 128;
      for (int64_t i = 0; i < 512; i += MULL_VECTOR_BYTES) {
        const vu bytes = load_bits(from + i);
        *reinterpret_cast<vu_any*>(out + i) = bytes & 0x0f0f0f0fu;
        *reinterpret_cast<vu_any*>(out + 512 + i) = (bytes >> 4) & 0x0f0f0f0fu;
      }
      out += 1024;
    }
  }
}
