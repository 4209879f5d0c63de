// One token a row: the likeliest, or the one its number falls on in vocabulary order. Sums run in one
// order whatever the batch; a row is one thread's work.

MULL_INLINE int64_t draw_blocks(int64_t vocabulary) { return ceil_div(vocabulary, kDrawBlock); }

// Index of the largest logit, the first of equal ones; -1 where one is NaN or infinite, or all are
// minus infinity (which a single one may be: a grammar forbids so).
static int64_t likeliest(const float* logits, int64_t count) {
  vf best_of_lane = splat(-__builtin_inff());
  vi is_nan{};
  int64_t i = 0;
  for (; i + W <= count; i += W) {
    const vf x = load(logits + i);
    is_nan |= (vi)(x != x);
    best_of_lane = select((vi)(x > best_of_lane), x, best_of_lane);
  }
  float best = max_of(best_of_lane);
  bool is_damaged = max_of((vi)((vu)is_nan & 1u)) != 0;
  for (; i < count; ++i) {
    is_damaged |= logits[i] != logits[i];
    best = high(best, logits[i]);
  }
  if (is_damaged || !(best - best == 0.0f)) return -1;
  for (i = 0; logits[i] != best;) ++i;
  return i;
}

// exp((logit - best) * inverse) of every entry, the sums of blocks, and the sum of all.
static double weigh(const float* logits, int64_t count, float best, float inverse, float* weights,
                    double* block_sums) {
  double total = 0.0;
  for (int64_t block = 0; block < draw_blocks(count); ++block) {
    const int64_t end = low((block + 1) * kDrawBlock, count);
    vf sums{};
    int64_t i = block * kDrawBlock;
    for (; i + W <= end; i += W) {
      const vf weight = exponential((load(logits + i) - best) * inverse);
      store(weights + i, weight);
      sums += weight;
    }
    float rest = sum(sums);
    for (; i < end; ++i) rest += weights[i] = exponential_one((logits[i] - best) * inverse);
    total += block_sums[block] = rest;
  }
  return total;
}

// The entry in which the weights' running sum passes target; never one of weight zero.
static int64_t place_of(const float* weights, const double* block_sums, int64_t count,
                        double target) {
  int64_t block = 0, last = 0;
  for (const int64_t blocks = draw_blocks(count); block < blocks; ++block) {
    if (block_sums[block] > target) break;
    if (block_sums[block] > 0.0) last = block;  // should rounding leave the target beyond the end
    target -= block_sums[block];
  }
  if (block == draw_blocks(count)) block = last, target = block_sums[last];
  const int64_t end = low((block + 1) * kDrawBlock, count);
  int64_t place = block * kDrawBlock;
  for (int64_t i = place; i < end; ++i) {
    if (!(weights[i] > 0.0f)) continue;
    place = i;
    if (weights[i] > target) break;
    target -= weights[i];
  }
  return place;
}

// One thread's memory for a row.
struct DrawScratch {
  float* weights;      // [vocabulary]
  double* block_sums;
  uint64_t* keys;      // [vocabulary] where rows have filters
};

static DrawScratch lay_out_draw(const Draw& draw, Arena* arena) {
  DrawScratch s;
  s.weights = arena->take<float>(draw.vocabulary);
  s.block_sums = arena->take<double>(draw_blocks(draw.vocabulary));
  s.keys = arena->take<uint64_t>(draw.top_k ? draw.vocabulary : 0);
  return s;
}

MULL_INLINE Filters filters_of(const Draw& draw, int64_t row) {
  if (!draw.top_k) return {0, 1.0, 0.0f};
  const int64_t top_k = draw.top_k[row];
  return {top_k < draw.vocabulary ? top_k : 0, draw.top_p[row], draw.min_p[row]};
}

static int64_t draw_row(const Draw& draw, int64_t row, const DrawScratch& s) {
  float* weights = s.weights;
  double* block_sums = s.block_sums;
  const float* logits = draw.logits + row * draw.stride;
  const int64_t best = likeliest(logits, draw.vocabulary);
  const float inverse = draw.inverse_temperature[row];
  if (best < 0) return best;
  int64_t token = best;
  float scale = 0.0f;  // of the weights that `total` is the sum of
  double total = 0.0;
  if (inverse > 0.0f || draw.sureness) {
    scale = inverse > 0.0f ? inverse : 1.0f;
    total = weigh(logits, draw.vocabulary, logits[best], scale, weights, block_sums);
    if (draw.sureness) draw.sureness[row] = static_cast<float>(1.0 / total);
    const Filters filters = filters_of(draw, row);
    const bool has_filters = filters.top_k || filters.top_p < 1.0 || filters.min_p > 0.0f;
    if (inverse > 0.0f && has_filters)
      token = draw_kept({weights, draw.vocabulary, total}, filters, draw.noise[row], s.keys);
    else if (inverse > 0.0f)
      token = place_of(weights, block_sums, draw.vocabulary, draw.noise[row] * total);
  }
  if (draw.logprobs) {
    const float wanted = draw.logprob_scale[row];
    if (scale != wanted)
      total = weigh(logits, draw.vocabulary, logits[best], wanted, weights, block_sums);
    draw.logprobs[row] =
        static_cast<float>((logits[token] - logits[best]) * wanted - __builtin_log(total));
  }
  return token;
}

static size_t draw_scratch(const Draw* draw, int threads) {
  Arena arena{nullptr, 0};
  for (int i = 0; i < threads; ++i) lay_out_draw(*draw, &arena);
  return static_cast<size_t>(arena.used);
}

static void draw_team(const Draw* draw, char* scratch, const Team& team) {
  Arena arena{scratch, 0};
  DrawScratch s{};
  for (int i = 0; i <= team.id; ++i) s = lay_out_draw(*draw, &arena);
  for (int64_t r = team.first(draw->rows); r < team.last(draw->rows); ++r)
    draw->tokens[r] = draw_row(*draw, r, s);
}
