// Log-probabilities of tokens from their logits, and the gradient of logits, row by row.

static void token_row(const TokenRows& t, int64_t r) {
  const float* logits = t.logits + r * t.vocabulary;
  const float scale = t.inverse_temperature;
  float best = -__builtin_inff();
  vf most = splat(best);
  vi is_nan{};
  int64_t i = 0;
  for (; i + W <= t.vocabulary; i += W) {
    const vf x = load(logits + i);
    is_nan |= (vi)(x != x);
    most = larger(x, most);
  }
  best = max_of(most);
  for (int64_t j = i; j < t.vocabulary; ++j) best = high(best, logits[j]);
  if (max_of((vi)((vu)is_nan & 1u))) best = __builtin_nanf("");  // all of the row becomes NaN
  vf sums{}, spread_sums{};
  for (i = 0; i + W <= t.vocabulary; i += W) {
    const vf x = (load(logits + i) - best) * scale, weight = exponential(x);
    sums += weight;
    spread_sums += weight * larger(x, splat(-88.0f));  // weight is 0 there
  }
  float total = sum(sums), spread = sum(spread_sums);
  for (; i < t.vocabulary; ++i) {
    const float x = (logits[i] - best) * scale, weight = exponential_one(x);
    total += weight;
    spread += weight * high(x, -88.0f);
  }
  const float own = (logits[t.targets[r]] - best) * scale, log_total = __builtin_logf(total);
  t.logprob[r] = own - log_total;
  t.entropy[r] = log_total - spread / total;  // H = log Z - sum p x
  t.normaliser[r] = best * scale + log_total;
  t.is_top[r] = own >= 0.0f;
}

// d logprob / d logits = (one at the target - probabilities) / temperature.
static void token_row_backward(const TokenRows& t, int64_t r) {
  float* logits = t.logits + r * t.vocabulary;
  const float scale = t.inverse_temperature, normaliser = t.normaliser[r];
  const float upstream = t.upstream[r] * scale;
  int64_t i = 0;
  for (; i + W <= t.vocabulary; i += W)
    store(logits + i, exponential(load(logits + i) * scale - normaliser) * -upstream);
  for (; i < t.vocabulary; ++i)
    logits[i] = exponential_one(logits[i] * scale - normaliser) * -upstream;
  logits[t.targets[r]] += upstream;
}

static void tokens_team(const TokenRows* t, const Team& team) {
  for (int64_t r = team.first(t->rows); r < team.last(t->rows); ++r)
    t->upstream ? token_row_backward(*t, r) : token_row(*t, r);
}
