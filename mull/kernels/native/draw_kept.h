// One token out of those that a row's filters keep: the `top_k` likeliest, of these the fewest that
// together have `top_p` of their probability, of these the ones at least `min_p` times as likely as
// the likeliest. Weights are taken off a heap in falling order, equal ones by their place, and only
// those heavy enough to matter are put on it.

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

// Whether the weight at place a comes before that at b.
MULL_INLINE bool is_before(const float* of, int32_t a, int32_t b) {
  return of[a] > of[b] || (of[a] == of[b] && a < b);
}

// Lets the entry at `at` sink to where the heap [size] is in order.
static void sink(const float* of, int32_t* heap, int64_t size, int64_t at) {
  const int32_t entry = heap[at];
  for (int64_t child = 2 * at + 1; child < size; at = child, child = 2 * at + 1) {
    if (child + 1 < size && is_before(of, heap[child + 1], heap[child])) ++child;
    if (!is_before(of, heap[child], entry)) break;
    heap[at] = heap[child];
  }
  heap[at] = entry;
}

// Moves the first entry behind the others.
static int32_t take_first(const float* of, int32_t* heap, int64_t* size) {
  const int32_t first = heap[0];
  heap[0] = heap[--*size];
  heap[*size] = first;
  if (*size > 0) sink(of, heap, *size, 0);
  return first;
}

// heap: [count] of memory. noise: in [0, 1).
static int64_t draw_kept(const RowWeights& weights, const Filters& filters, double noise,
                         int32_t* heap) {
  const float* of = weights.of;
  const float least = least_kept(weights, filters);
  int64_t entries = 0;
  for (int64_t i = 0; i < weights.count; ++i) {
    heap[entries] = static_cast<int32_t>(i);
    entries += of[i] >= least;
  }
  for (int64_t i = entries / 2; i-- > 0;) sink(of, heap, entries, i);
  int64_t size = entries, kept = 0;
  const int64_t most = filters.top_k ? low(filters.top_k, entries) : entries;
  double sum_of_kept = 0.0, mass = filters.top_p * weights.total;
  if (filters.top_k) {
    while (kept < most) sum_of_kept += of[take_first(of, heap, &size)], ++kept;
    mass = filters.top_p * sum_of_kept;
  }
  // From here on, or once more from the first: as far as top_p reaches.
  const int64_t taken = kept;
  sum_of_kept = 0.0;
  for (kept = 0; kept < most; ++kept) {
    const float weight = of[kept < taken ? heap[entries - 1 - kept] : heap[0]];
    const bool is_dropped = (filters.top_p < 1.0 && sum_of_kept >= mass) || weight < filters.min_p;
    if (kept > 0 && is_dropped) break;
    if (kept >= taken) take_first(of, heap, &size);
    sum_of_kept += weight;
  }
  double target = noise * sum_of_kept;
  int64_t place = 0;
  for (; place + 1 < kept; ++place) {
    const float weight = of[heap[entries - 1 - place]];
    if (weight > target) break;
    target -= weight;
  }
  return heap[entries - 1 - place];
}
