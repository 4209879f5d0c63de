// One token out of those that a row's filters keep: the `top_k` likeliest, of these the fewest that
// together have `top_p` of their probability, of these the ones at least `min_p` times as likely as
// the likeliest. They stand in falling order of weight, equal ones by their place, but are not sorted:
// what is wanted is where that order reaches some number or sum, which halving finds in linear time.

constexpr int64_t kDrawBlock = 128;  // entries summed in float32; blocks are summed in float64

struct Filters {
  int64_t top_k;  // 0: off
  double top_p;   // 1: off
  float min_p;    // 0: off
};

struct RowWeights {
  const float* of;  // [count], the largest 1
  int64_t count;
  double total;
};

// How many weights are at least `least`, and their sum.
static int64_t count_heavy(const RowWeights& weights, float least, double* sum_of_all) {
  vi counts{};
  double total = 0.0;
  int64_t i = 0;
  while (i + W <= weights.count) {
    vf sums{};  // of a few in float32: thousands of them would lose digits
    for (const int64_t end = low(i + kDrawBlock, weights.count / W * W); i < end; i += W) {
      const vf weight = load(weights.of + i);
      const vi is_heavy = (vi)(weight >= least);
      counts -= is_heavy;
      sums += (vf)((vi)weight & is_heavy);
    }
    total += sum(sums);
  }
  int64_t count = sum((vu)counts);
  for (; i < weights.count; ++i)
    if (weights.of[i] >= least) ++count, total += weights.of[i];
  *sum_of_all = total;
  return count;
}

// A weight that none of the kept ones is below.
static float least_kept(const RowWeights& weights, const Filters& filters) {
  constexpr float kSmallest = 1e-38f;  // weights are no smaller, or zero
  // What top_p is a share of may hold weights below min_p.
  const float floor = filters.top_k && filters.top_p < 1.0 ? 0.0f : filters.min_p;
  for (float least = 0.0625f; least > kSmallest; least *= 0.0625f) {
    if (least <= floor) return floor;
    double mass;
    const int64_t count = count_heavy(weights, least, &mass);
    // A sum in another order might miss the last bits of what is asked for.
    if (filters.top_k ? count >= filters.top_k : mass > filters.top_p * weights.total * (1.0 + 1e-6))
      return least;
  }
  return floor > 0.0f ? floor : kSmallest;
}

// A weight and its place in one number: heavier ones are larger, and so are earlier ones of a weight.
MULL_INLINE uint64_t key_of(float weight, int64_t place) {
  return static_cast<uint64_t>(__builtin_bit_cast(uint32_t, weight)) << 32 |
         (0xffffffffu - static_cast<uint32_t>(place));
}

MULL_INLINE float weight_of(uint64_t key) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(key >> 32));
}

MULL_INLINE int64_t place_of(uint64_t key) {
  return 0xffffffffu - static_cast<uint32_t>(key);
}

static double sum_of(const uint64_t* keys, int64_t size) {
  double total = 0.0;
  for (int64_t i = 0; i < size; ++i) total += weight_of(keys[i]);
  return total;
}

// Where the falling order of keys [end] has so many of them, or so much of their weight: those up to
// there are put first, in no order but that this one is the last of them. Its index; the last one's
// where all are not enough.
template <bool is_number>
static int64_t reach(uint64_t* keys, int64_t end, double enough) {
  int64_t begin = 0;
  while (end - begin > 1) {
    uint64_t least = keys[begin], most = least;
    for (int64_t i = begin + 1; i < end; ++i) {
      least = keys[i] < least ? keys[i] : least;
      most = keys[i] > most ? keys[i] : most;
    }
    const uint64_t middle = most - (most - least) / 2;  // no two are equal: some are on either side
    int64_t next = begin;
    double found = 0.0;
    for (int64_t i = begin; i < end; ++i) {
      const uint64_t key = keys[i];
      const bool is_first = key >= middle;
      found += is_first ? (is_number ? 1.0 : weight_of(key)) : 0.0;
      keys[i] = keys[next];
      keys[next] = key;
      next += is_first;
    }
    if (found >= enough) {
      end = next;
    } else {
      enough -= found;
      begin = next;
    }
  }
  return begin;
}

// keys: [count] of memory. noise: in [0, 1).
static int64_t draw_kept(const RowWeights& weights, const Filters& filters, double noise,
                         uint64_t* keys) {
  const float least = least_kept(weights, filters);
  int64_t size = 0;
  for (int64_t i = 0; i < weights.count; ++i) {
    keys[size] = key_of(weights.of[i], i);
    size += weights.of[i] >= least;
  }
  double mass = filters.top_p * weights.total;
  if (filters.top_k) {
    if (filters.top_k < size)
      size = reach<true>(keys, size, static_cast<double>(filters.top_k)) + 1;
    mass = filters.top_p * sum_of(keys, size);
  }
  if (filters.top_p < 1.0) size = reach<false>(keys, size, mass) + 1;
  int64_t kept = 0;
  for (int64_t i = 0; i < size; ++i) {
    const uint64_t key = keys[i];
    keys[kept] = key;
    kept += weight_of(key) >= filters.min_p;
  }
  // More than the target, so that it is the one whose share the noise falls into.
  const double target = noise * sum_of(keys, kept);
  return place_of(keys[reach<false>(keys, kept, __builtin_nextafter(target, 2.0 * target + 1.0))]);
}
