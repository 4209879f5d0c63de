// Vectors of float32 in the width of the instruction set being compiled, through the compiler's
// own vector types, so that one source serves every processor. Included inside a namespace per
// instruction set; uses nothing of the standard library, whose inline functions would be shared
// between differently compiled files.

#if MULL_VECTOR_BYTES != 64 && MULL_VECTOR_BYTES != 32 && MULL_VECTOR_BYTES != 16
#error "MULL_VECTOR_BYTES is 16, 32 or 64"
#endif

constexpr int W = MULL_VECTOR_BYTES / 4;

typedef float vf __attribute__((vector_size(MULL_VECTOR_BYTES)));
typedef int32_t vi __attribute__((vector_size(MULL_VECTOR_BYTES)));
typedef uint32_t vu __attribute__((vector_size(MULL_VECTOR_BYTES)));
typedef uint16_t vh __attribute__((vector_size(MULL_VECTOR_BYTES / 2)));
typedef float vf_any __attribute__((vector_size(MULL_VECTOR_BYTES), aligned(4), may_alias));
typedef uint32_t vu_any __attribute__((vector_size(MULL_VECTOR_BYTES), aligned(4), may_alias));
typedef uint16_t vh_any __attribute__((vector_size(MULL_VECTOR_BYTES / 2), aligned(2), may_alias));

#define MULL_INLINE static inline __attribute__((always_inline))

MULL_INLINE vf load(const float* p) { return *reinterpret_cast<const vf_any*>(p); }
MULL_INLINE void store(float* p, vf v) { *reinterpret_cast<vf_any*>(p) = v; }
MULL_INLINE vu load_bits(const void* p) { return *reinterpret_cast<const vu_any*>(p); }
MULL_INLINE vf splat(float x) { return x - vf{}; }
MULL_INLINE float low(float a, float b) { return a < b ? a : b; }
MULL_INLINE int64_t low(int64_t a, int64_t b) { return a < b ? a : b; }
MULL_INLINE float high(float a, float b) { return a > b ? a : b; }
MULL_INLINE int64_t high(int64_t a, int64_t b) { return a > b ? a : b; }
MULL_INLINE int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }
MULL_INLINE int64_t ceil_div(int64_t x, int64_t by) { return (x + by - 1) / by; }

MULL_INLINE float to_float(uint16_t x) {
  uint32_t bits = static_cast<uint32_t>(x) << 16;
  float y;
  __builtin_memcpy(&y, &bits, 4);
  return y;
}

// bfloat16 bits to and from the upper halves of float32 lanes. GCC makes four instructions of the
// generic conversion where these processors have one.
MULL_INLINE vu spread(const uint16_t* p) {
#if defined(__AVX512F__)
  return (vu)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))) << 16;
#elif defined(__AVX2__)
  return (vu)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))) << 16;
#else
  return __builtin_convertvector(*reinterpret_cast<const vh_any*>(p), vu) << 16;
#endif
}

MULL_INLINE void gather_halves(uint16_t* p, vu bits) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16((__m512i)(bits >> 16)));
#else
  *reinterpret_cast<vh_any*>(p) = __builtin_convertvector(bits >> 16, vh);
#endif
}

MULL_INLINE vf load(const uint16_t* p) { return (vf)spread(p); }

// Round to nearest even; NaN stays NaN.
MULL_INLINE uint32_t round_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return (x == x ? rounded : (bits | 0x400000u)) & 0xffff0000u;
}

MULL_INLINE vu round_bits(vf x) {
  vu bits = (vu)x;
  vu rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  vi is_number = (vi)(x == x);
  return (((vu)is_number & rounded) | (~(vu)is_number & (bits | 0x400000u))) & 0xffff0000u;
}

MULL_INLINE uint16_t to_bfloat16(float x) { return static_cast<uint16_t>(round_bits(x) >> 16); }

MULL_INLINE void store(uint16_t* p, vf v) {
  gather_halves(p, round_bits(v));
}
MULL_INLINE float load_one(const float* p) { return *p; }
MULL_INLINE float load_one(const uint16_t* p) { return to_float(*p); }
MULL_INLINE void store_one(float* p, float x) { *p = x; }
MULL_INLINE void store_one(uint16_t* p, float x) { *p = to_bfloat16(x); }

// Halves are added to each other, down to one lane.
MULL_INLINE float sum(vf v) {
#if MULL_VECTOR_BYTES == 64
  return _mm512_reduce_add_ps((__m512)v);
#elif MULL_VECTOR_BYTES == 32
  __m128 rest = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  rest = _mm_add_ps(rest, _mm_movehl_ps(rest, rest));
  return _mm_cvtss_f32(_mm_add_ss(rest, _mm_shuffle_ps(rest, rest, 1)));
#else
  float parts[W];
  store(parts, v);
  for (int width = W / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) parts[i] += parts[i + width];
  return parts[0];
#endif
}

MULL_INLINE float max_of(vf v) {
#if MULL_VECTOR_BYTES == 64
  return _mm512_reduce_max_ps((__m512)v);
#else
  float parts[W];
  store(parts, v);
  float best = parts[0];
  for (int i = 1; i < W; ++i) best = high(best, parts[i]);
  return best;
#endif
}

MULL_INLINE vf select(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }

// e^x to about 2 units in the last place; exactly 0 below -87.3 (so for -inf); NaN stays NaN.
MULL_INLINE vf exponential(vf x) {
  vi too_small = (vi)(x < -87.3f);
  vi too_large = (vi)(x > 88.7f);
  vf y = select(too_small, splat(-87.3f), x);
  y = select(too_large, splat(88.7f), y);
  // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
  vf shifted = y * 1.44269504f + 12582912.0f;
  vf n = shifted - 12582912.0f;
  vf r = y - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  vf p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // 2^n in two steps: n = 128 has no float exponent of its own.
  vi whole = (vi)shifted - 0x4b400000;
  vi half = whole >> 1;
  vf first = (vf)((half + 127) << 23);
  vf second = (vf)((whole - half + 127) << 23);
  vf result = p * first * second;
  return select(too_small, vf{}, result);
}

MULL_INLINE float exponential_one(float x) { return exponential(splat(x))[0]; }

// W float16 values. In plain code: the exponent is moved by a multiplication, subnormals included.
MULL_INLINE vf load_half(const uint16_t* p) {
#if MULL_VECTOR_BYTES == 64
  return (vf)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif MULL_VECTOR_BYTES == 32
  return (vf)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__aarch64__)
  return (vf)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
#else
  const vu bits = __builtin_convertvector(*reinterpret_cast<const vh_any*>(p), vu);
  const vf magnitude = (vf)((bits & 0x7fffu) << 13) * 0x1p112f;
  return (vf)((vu)magnitude | ((bits & 0x8000u) << 16));
#endif
}

// To the nearest whole number, halves to even.
MULL_INLINE vi to_whole(vf v) {
#if MULL_VECTOR_BYTES == 64
  return (vi)_mm512_cvtps_epi32((__m512)v);
#elif MULL_VECTOR_BYTES == 32
  return (vi)_mm256_cvtps_epi32((__m256)v);
#elif defined(__aarch64__)
  return (vi)vcvtnq_s32_f32((float32x4_t)v);
#elif defined(__SSE2__)
  return (vi)_mm_cvtps_epi32((__m128)v);
#else
  vi whole;
  for (int i = 0; i < W; ++i) whole[i] = static_cast<int32_t>(__builtin_rintf(v[i]));
  return whole;
#endif
}

MULL_INLINE vf to_float(vi v) { return __builtin_convertvector(v, vf); }
MULL_INLINE vi splat(int32_t x) { return x - vi{}; }
MULL_INLINE vi load_ints(const void* p) { return (vi)load_bits(p); }

// Four bytes for every lane.
MULL_INLINE vi splat_quad(const void* p) {
  int32_t quad;
  __builtin_memcpy(&quad, p, 4);
  return splat(quad);
}

MULL_INLINE vi larger(vi a, vi b) {
#if MULL_VECTOR_BYTES == 64
  return (vi)_mm512_max_epi32((__m512i)a, (__m512i)b);
#elif MULL_VECTOR_BYTES == 32
  return (vi)_mm256_max_epi32((__m256i)a, (__m256i)b);
#else
  const vi more = a > b;
  return (a & more) | (b & ~more);
#endif
}

MULL_INLINE int32_t max_of(vi v) {
#if MULL_VECTOR_BYTES == 64
  return _mm512_reduce_max_epi32((__m512i)v);
#elif MULL_VECTOR_BYTES == 32
  const __m256i whole = (__m256i)v;
  __m128i rest = _mm_max_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  rest = _mm_max_epi32(rest, _mm_shuffle_epi32(rest, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(rest, _mm_shuffle_epi32(rest, 0xb1)));
#else
  int32_t best = v[0];
  for (int i = 1; i < W; ++i) best = best > v[i] ? best : v[i];
  return best;
#endif
}

// Wraps around; GCC's own _mm512_reduce_add_epi32 adds signed numbers, where that is undefined.
MULL_INLINE uint32_t sum(vu v) {
#if MULL_VECTOR_BYTES >= 32
#if MULL_VECTOR_BYTES == 64
  const __m512i whole = (__m512i)v;
  const __m256i half =
      _mm256_add_epi32(_mm512_castsi512_si256(whole), _mm512_extracti64x4_epi64(whole, 1));
#else
  const __m256i half = (__m256i)v;
#endif
  __m128i rest = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  rest = _mm_add_epi32(rest, _mm_shuffle_epi32(rest, 0x4e));
  rest = _mm_add_epi32(rest, _mm_shuffle_epi32(rest, 0xb1));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(rest));
#else
  uint32_t total = 0;
  for (int i = 0; i < W; ++i) total += v[i];
  return total;
#endif
}

// The low bytes of W whole numbers.
MULL_INLINE void store_bytes(int8_t* p, vi v) {
#if MULL_VECTOR_BYTES == 64
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8((__m512i)v));
#elif MULL_VECTOR_BYTES == 32
  const __m256i quads = _mm256_shuffle_epi8((__m256i)v, _mm256_set1_epi32(0x0c080400));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p),
                   _mm_unpacklo_epi32(_mm256_castsi256_si128(quads), _mm256_extracti128_si256(quads, 1)));
#else
  for (int i = 0; i < W; ++i) p[i] = static_cast<int8_t>(v[i]);
#endif
}

// Dot products of four bytes a lane, exact in int32. `dot4_nibbles`: unsigned up to 15 times signed
// from -127. `dot4_bytes`: unsigned with zero point 128, first put by `ready_bytes` into the form
// that the processor multiplies; where kOffsetBytes, the zero point is still in the sum.
#if defined(__AVX512VNNI__) && MULL_VECTOR_BYTES == 64
constexpr bool kOffsetBytes = true;
MULL_INLINE vi dot4_nibbles(vi acc, vi w, vi a) {
  return (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, (__m512i)a);
}
MULL_INLINE vi ready_bytes(vi w) { return w; }
MULL_INLINE vi dot4_bytes(vi acc, vi w, vi a) { return dot4_nibbles(acc, w, a); }
#elif defined(__AVXVNNI__) && MULL_VECTOR_BYTES == 32
constexpr bool kOffsetBytes = true;
MULL_INLINE vi dot4_nibbles(vi acc, vi w, vi a) {
  return (vi)_mm256_dpbusd_avx_epi32((__m256i)acc, (__m256i)w, (__m256i)a);
}
MULL_INLINE vi ready_bytes(vi w) { return w; }
MULL_INLINE vi dot4_bytes(vi acc, vi w, vi a) { return dot4_nibbles(acc, w, a); }
#elif defined(__AVX2__) && MULL_VECTOR_BYTES == 32
// Pairs are added in 16 bits: 2 * 15 * 127 and 2 * 128 * 127 still fit, 2 * 255 * 127 would not.
constexpr bool kOffsetBytes = false;
MULL_INLINE vi dot4_nibbles(vi acc, vi w, vi a) {
  const __m256i pairs = _mm256_maddubs_epi16((__m256i)w, (__m256i)a);
  return acc + (vi)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
MULL_INLINE vi ready_bytes(vi w) { return w ^ static_cast<int32_t>(0x80808080u); }
MULL_INLINE vi dot4_bytes(vi acc, vi w, vi a) {
  const __m256i magnitude = _mm256_abs_epi8((__m256i)w);
  const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8((__m256i)a, (__m256i)w));
  return acc + (vi)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
#elif defined(__ARM_FEATURE_DOTPROD)
constexpr bool kOffsetBytes = false;
MULL_INLINE vi dot4_nibbles(vi acc, vi w, vi a) {
  return (vi)vdotq_s32((int32x4_t)acc, (int8x16_t)w, (int8x16_t)a);
}
MULL_INLINE vi ready_bytes(vi w) { return w ^ static_cast<int32_t>(0x80808080u); }
MULL_INLINE vi dot4_bytes(vi acc, vi w, vi a) { return dot4_nibbles(acc, w, a); }
#else
constexpr bool kOffsetBytes = false;
MULL_INLINE vi dot4_nibbles(vi acc, vi w, vi a) {
#pragma GCC unroll 4
  for (int shift = 24; shift >= 0; shift -= 8) acc += ((w << shift) >> 24) * ((a << shift) >> 24);
  return acc;
}
MULL_INLINE vi ready_bytes(vi w) { return w ^ static_cast<int32_t>(0x80808080u); }
MULL_INLINE vi dot4_bytes(vi acc, vi w, vi a) { return dot4_nibbles(acc, w, a); }
#endif

#if defined(__AVX2__) && !defined(__AVXVNNI__) && MULL_VECTOR_BYTES == 32
constexpr bool kNarrowSums = true;
// Eight times `dot4_nibbles` with half of the multiplications: 8 * 2 * 15 * 127 fits into 16 bits
// too, so that these are widened once at the end.
MULL_INLINE vi nibbles_narrow(vi w, vi a) {
  return (vi)_mm256_maddubs_epi16((__m256i)w, (__m256i)a);
}
MULL_INLINE vi add_nibbles_narrow(vi sums, vi w, vi a) {
  // In place: compilers copy every sum to another register and back otherwise.
  asm("vpaddw %1, %0, %0" : "+x"(sums) : "x"(nibbles_narrow(w, a)));
  return sums;
}
MULL_INLINE vi widened(vi sums) {
  return (vi)_mm256_madd_epi16((__m256i)sums, _mm256_set1_epi16(1));
}
#else
constexpr bool kNarrowSums = false;
MULL_INLINE vi nibbles_narrow(vi w, vi) { return w; }
MULL_INLINE vi add_nibbles_narrow(vi sums, vi, vi) { return sums; }
MULL_INLINE vi widened(vi sums) { return sums; }
#endif

// `dot4_unsigned`: unsigned up to 255 times signed; kNarrowSums does without it.
MULL_INLINE vi dot4_unsigned(vi acc, vi w, vi a) {
#if (defined(__AVX512VNNI__) && MULL_VECTOR_BYTES == 64) || \
    (defined(__AVXVNNI__) && MULL_VECTOR_BYTES == 32)
  return dot4_bytes(acc, w, a);
#elif defined(__ARM_FEATURE_DOTPROD)
  const vi high_bits = (w >> 1) & 0x7f7f7f7f, last_bit = w & 0x01010101;
  const vi high_sum = (vi)vdotq_s32(int32x4_t{}, (int8x16_t)high_bits, (int8x16_t)a);
  return (vi)vdotq_s32((int32x4_t)(acc + high_sum + high_sum), (int8x16_t)last_bit, (int8x16_t)a);
#else
#pragma GCC unroll 4
  for (int shift = 24; shift >= 0; shift -= 8)
    acc += (vi)(((vu)w << shift) >> 24) * ((a << shift) >> 24);
  return acc;
#endif
}

#if defined(__clang__)
#if MULL_VECTOR_BYTES == 64
MULL_INLINE vf evens(vf a, vf b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}
MULL_INLINE vf odds(vf a, vf b) {
  return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}
#elif MULL_VECTOR_BYTES == 32
MULL_INLINE vf evens(vf a, vf b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
}
MULL_INLINE vf odds(vf a, vf b) {
  return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
}
#else
MULL_INLINE vf evens(vf a, vf b) { return __builtin_shufflevector(a, b, 0, 2, 4, 6); }
MULL_INLINE vf odds(vf a, vf b) { return __builtin_shufflevector(a, b, 1, 3, 5, 7); }
#endif
#else
MULL_INLINE vi count_by_two(int start) {
  vi v{};
  for (int i = 0; i < W; ++i) v[i] = start + 2 * i;
  return v;
}
MULL_INLINE vf evens(vf a, vf b) { return __builtin_shuffle(a, b, count_by_two(0)); }
MULL_INLINE vf odds(vf a, vf b) { return __builtin_shuffle(a, b, count_by_two(1)); }
#endif

// Of N vectors whose lanes are partial sums: lane i of the result belongs to v[i * N / W]; added
// pairwise in one order. N = W leaves the full sums.
template <int N>
MULL_INLINE vf fold(const vf* v) {
  if constexpr (N == 1) {
    return v[0];
  } else {
    const vf a = fold<N / 2>(v), b = fold<N / 2>(v + N / 2);
    return evens(a, b) + odds(a, b);
  }
}

constexpr int kPanel = 16;           // outputs of packed weights that lie side by side
constexpr int kVectors = kPanel / W;  // vectors across one panel
