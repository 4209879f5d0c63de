// Which experts a token goes to, and with which weights: model/moe.py's Router for one row.

MULL_INLINE bool is_nan(float x) { return x != x; }

// As torch orders numbers: NaN is the greatest. Of equals the one met first stays.
MULL_INLINE bool is_greater(float a, float b) { return a > b || (is_nan(a) && !is_nan(b)); }

// The largest of scores[first, last) that is not taken; -1: all are.
static int64_t best_free(const float* scores, const char* taken, int64_t first, int64_t last) {
  int64_t best = -1;
  for (int64_t i = first; i < last; ++i)
    if (!taken[i] && (best < 0 || is_greater(scores[i], scores[best]))) best = i;
  return best;
}

// Logits to affinities, in place.
static void score_experts(int32_t scoring, float* scores, int64_t experts) {
  if (scoring == kSigmoid) {
    for (int64_t e = 0; e < experts; ++e) scores[e] = 1.0f / (1.0f + exponential_one(-scores[e]));
    return;
  }
  float top = scores[0], total = 0.0f;
  for (int64_t e = 1; e < experts; ++e) top = high(top, scores[e]);
  for (int64_t e = 0; e < experts; ++e) {
    scores[e] = exponential_one(scores[e] - top);
    total += scores[e];
  }
  for (int64_t e = 0; e < experts; ++e) scores[e] /= total;
}

// What a group of experts is worth: its best, or the sum of its two best.
static float score_group(int32_t rule, const float* ranks, char* taken, int64_t first,
                         int64_t last) {
  const int64_t best = best_free(ranks, taken, first, last);
  if (rule == kBestOfGroup) return ranks[best];
  taken[best] = 1;
  const int64_t second = best_free(ranks, taken, first, last);
  taken[best] = 0;
  return ranks[best] + ranks[second];
}

// Leaves only the best groups' experts free.
static void drop_groups(const Routing& routing, const float* ranks, char* taken,
                        float* group_scores, char* group_taken) {
  const int64_t in_group = routing.experts / routing.groups;
  for (int64_t g = 0; g < routing.groups; ++g) {
    group_taken[g] = 0;
    group_scores[g] =
        score_group(routing.group_rule, ranks, taken, g * in_group, (g + 1) * in_group);
  }
  for (int64_t i = 0; i < routing.kept_groups; ++i)
    group_taken[best_free(group_scores, group_taken, 0, routing.groups)] = 1;
  for (int64_t e = 0; e < routing.experts; ++e) taken[e] = !group_taken[e / in_group];
}

// Scratch of one thread: float [2 * experts] and char [2 * experts].
struct RouterScratch {
  float* ranks;
  float* group_scores;
  char* taken;
  char* group_taken;
};

// scores: the router's logits of one row, overwritten. experts and weights [chosen], best first.
static void choose_experts(const Routing& routing, const float* bias, float* scores,
                           const RouterScratch& s, int32_t* experts, float* weights) {
  score_experts(routing.scoring, scores, routing.experts);
  for (int64_t e = 0; e < routing.experts; ++e) {
    s.ranks[e] = scores[e] + (bias ? bias[e] : 0.0f);
    s.taken[e] = 0;
  }
  if (routing.group_rule != kNoGroups)
    drop_groups(routing, s.ranks, s.taken, s.group_scores, s.group_taken);
  float total = 0.0f;
  for (int64_t i = 0; i < routing.chosen; ++i) {
    const int64_t best = best_free(s.ranks, s.taken, 0, routing.experts);
    s.taken[best] = 1;
    experts[i] = static_cast<int32_t>(best);
    weights[i] = scores[best];  // the bias only selects
    total += weights[i];
  }
  const float divisor = routing.normalise ? total + 1e-20f : 1.0f;
  for (int64_t i = 0; i < routing.chosen; ++i) weights[i] = weights[i] / divisor * routing.scaling;
}

// The rows of a step sorted by expert, and where each row's choices lie in that order.
struct Groups {
  int32_t* starts;  // [experts + 1]
  int32_t* rows;    // [rows * chosen]: the row at each place
  int32_t* places;  // [rows, chosen]
  int32_t* active;  // [experts]: those with rows
  int64_t num_active;
};

static void group_rows(const Routing& routing, const int32_t* experts, int64_t rows,
                       Groups* groups) {
  const int64_t pairs = rows * routing.chosen;
  int32_t* starts = groups->starts;
  for (int64_t e = 0; e <= routing.experts; ++e) starts[e] = 0;
  for (int64_t i = 0; i < pairs; ++i) ++starts[experts[i] + 1];
  groups->num_active = 0;
  for (int64_t e = 0; e < routing.experts; ++e) {
    if (starts[e + 1]) groups->active[groups->num_active++] = static_cast<int32_t>(e);
    starts[e + 1] += starts[e];
  }
  for (int64_t i = 0; i < pairs; ++i) {
    const int32_t place = starts[experts[i]]++;
    groups->rows[place] = static_cast<int32_t>(i / routing.chosen);
    groups->places[i] = place;
  }
  // Every start has moved to its end, which is the next one's start.
  for (int64_t e = routing.experts; e > 0; --e) starts[e] = starts[e - 1];
  starts[0] = 0;
}
