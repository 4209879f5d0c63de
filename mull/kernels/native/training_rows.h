// The training step's work on rows: norms, gated activations, weighted sums, and their gradients.

MULL_INLINE float dot_rows(const float* a, const float* b, int64_t width) {
  vf sums{};
  int64_t i = 0;
  for (; i + W <= width; i += W) sums += load(a + i) * load(b + i);
  float total = sum(sums);
  for (; i < width; ++i) total += a[i] * b[i];
  return total;
}

static void norm_forward(const NormRows& n, const Team& team) {
  for (int64_t r = team.first(n.rows); r < team.last(n.rows); ++r) {
    const float* x = n.x + r * n.stride;
    float* y = n.y + r * n.width;
    const float mean = dot_rows(x, x, n.width) / static_cast<float>(n.width);
    const float inverse = 1.0f / __builtin_sqrtf(mean + n.eps);
    int64_t i = 0;
    for (; i + W <= n.width; i += W) store(y + i, load(x + i) * inverse * load(n.weight + i));
    for (; i < n.width; ++i) y[i] = x[i] * inverse * n.weight[i];
    n.inverse[r] = inverse;
  }
}

// With s = 1 / rms: s w u - s^3 mean(u w x) x for x, the sum over rows of s u x for the weight.
static void norm_backward(const NormRows& n, float* of_weight, const Team& team) {
  for (int64_t i = 0; i < n.width; ++i) of_weight[i] = 0.0f;
  for (int64_t r = team.first(n.rows); r < team.last(n.rows); ++r) {
    const float *x = n.x + r * n.stride, *up = n.upstream + r * n.width;
    float* of_x = n.y + r * n.width;
    const float inverse = n.inverse[r];
    vf sums{};
    float rest = 0.0f;
    int64_t i = 0;
    for (; i + W <= n.width; i += W) {
      const vf product = load(up + i) * load(x + i);
      store(of_weight + i, load(of_weight + i) + product * inverse);
      sums += product * load(n.weight + i);
    }
    for (; i < n.width; ++i) {
      const float product = up[i] * x[i];
      of_weight[i] += product * inverse;
      rest += product * n.weight[i];
    }
    const float share =
        (sum(sums) + rest) * inverse * inverse * inverse / static_cast<float>(n.width);
    for (i = 0; i + W <= n.width; i += W)
      store(of_x + i, load(up + i) * load(n.weight + i) * inverse - load(x + i) * share);
    for (; i < n.width; ++i) of_x[i] = up[i] * n.weight[i] * inverse - x[i] * share;
  }
}

// Of every thread: its sums for the weight's gradient.
static size_t norm_scratch(const NormRows* n, int threads) {
  return n->is_backward ? static_cast<size_t>(threads * round_up(n->width * 4, 64)) : 64;
}

static void norm_team(const NormRows* n, char* scratch, const Team& team) {
  if (!n->is_backward) return norm_forward(*n, team);
  const int64_t bytes = round_up(n->width * 4, 64);
  norm_backward(*n, reinterpret_cast<float*>(scratch + team.id * bytes), team);
  team.barrier();
  if (team.id) return;
  for (int64_t i = 0; i < n->width; ++i) {
    float total = 0.0f;
    for (int t = 0; t < team.size; ++t)
      total += reinterpret_cast<const float*>(scratch + t * bytes)[i];
    n->of_weight[i] = total;
  }
}

MULL_INLINE vf sigmoid(vf x) { return 1.0f / (1.0f + exponential(-x)); }

static void gated_forward(const GatedRows& g, const Team& team) {
  for (int64_t r = team.first(g.rows); r < team.last(g.rows); ++r) {
    const float *gate = g.gate + r * g.stride, *up = g.up + r * g.stride;
    float* inner = g.inner + r * g.width;
    int64_t i = 0;
    for (; i + W <= g.width; i += W) {
      const vf x = load(gate + i);
      store(inner + i, x * sigmoid(x) * load(up + i));
    }
    for (; i < g.width; ++i) inner[i] = gate[i] * sigmoid(splat(gate[i]))[0] * up[i];
  }
}

// d silu(x) / dx = s (1 + x (1 - s)) with s = sigmoid(x).
static void gated_backward(const GatedRows& g, const Team& team) {
  for (int64_t r = team.first(g.rows); r < team.last(g.rows); ++r) {
    const float *gate = g.gate + r * g.stride, *up = g.up + r * g.stride;
    const float* upstream = g.upstream + r * g.width;
    float *of_gate = g.of_gate + r * g.of_stride, *of_up = g.of_up + r * g.of_stride;
    float* inner = g.inner ? g.inner + r * g.width : nullptr;
    int64_t i = 0;
    for (; i + W <= g.width; i += W) {
      const vf x = load(gate + i), y = load(up + i), u = load(upstream + i), s = sigmoid(x);
      store(of_gate + i, u * y * s * (1.0f + x * (1.0f - s)));
      store(of_up + i, u * x * s);
      if (inner) store(inner + i, x * s * y);
    }
    for (; i < g.width; ++i) {
      const float x = gate[i], y = up[i], u = upstream[i], s = sigmoid(splat(x))[0];
      of_gate[i] = u * y * s * (1.0f + x * (1.0f - s));
      of_up[i] = u * x * s;
      if (inner) inner[i] = x * s * y;
    }
  }
}

static void gated_team(const GatedRows* g, const Team& team) {
  g->upstream ? gated_backward(*g, team) : gated_forward(*g, team);
}

static void summed_team(const SummedRows* s, const Team& team) {
  for (int64_t t = team.first(s->rows); t < team.last(s->rows); ++t) {
    float* out = s->out + t * s->width;
    for (int64_t r = 0; r < s->each; ++r) {
      const int64_t place = s->places[t * s->each + r];
      const float weight = s->weights ? s->weights[place] : 1.0f;
      const float* row = s->table + place * s->width;
      int64_t i = 0;
      for (; i + W <= s->width; i += W)
        store(out + i, r ? load(out + i) + load(row + i) * weight : load(row + i) * weight);
      for (; i < s->width; ++i) out[i] = r ? out[i] + row[i] * weight : row[i] * weight;
    }
  }
}

static void dealt_team(const DealtRows* d, const Team& team) {
  for (int64_t s = team.first(d->rows); s < team.last(d->rows); ++s) {
    const float* up = d->upstream + d->places[s] * d->width;
    float* out = d->out + s * d->width;
    d->of_weights[s] = dot_rows(up, d->table + s * d->width, d->width);
    const float weight = d->weights[s];
    int64_t i = 0;
    for (; i + W <= d->width; i += W) store(out + i, load(up + i) * weight);
    for (; i < d->width; ++i) out[i] = up[i] * weight;
  }
}
