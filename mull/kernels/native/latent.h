// Decoder layers of multi-head latent attention in its absorbed form (model/mla.py): the cache
// holds one latent and one roped key per token, queries are taken into the latent's space and
// attended values out of it, head by head. Both per-head products run where the head's rows are
// put in form, so no thread waits for another between them.

constexpr float kLatentEps = 1e-6f;  // whatever the config says, as DeepSeek's own code has it
constexpr int64_t kHeadRows = 64;  // rows of one head that are one piece of work

struct LatentBuffers {
  int64_t* counters;  // per layer, a cache line apart: pieces of attention taken
  char* narrow;     // rows in the form of the product they go into
  float* entry;     // [rows, entry.n]
  float* queries;   // [rows, heads * (nope + rope)]; unused where entry holds them
  float* latents;   // [rows, latent + rope]: what is cached
  float* absorbed;  // [rows, heads, latent + rope]
  float* attended;  // [rows, heads, latent]
  float* expanded;  // [rows, heads * value]
  char* head_rows;  // this thread's rows of one head, in form
  char* attention;
  MlpBuffers mlp;
};

MULL_INLINE int64_t cached_width(const LatentStack& stack) { return stack.latent + stack.rope; }

// Pairs turned by their token's angle, laid out in halves; see model/rope.py. to is not from.
static void turn(const float* from, const float* cos, const float* sin, int64_t half,
                 bool interleaved, float* to) {
  int64_t i = 0;
  for (; i + W <= half; i += W) {
    vf a = load(from + i), b = load(from + half + i);
    if (interleaved) {
      const vf low_part = load(from + 2 * i), high_part = load(from + 2 * i + W);
      a = evens(low_part, high_part), b = odds(low_part, high_part);
    }
    const vf c = load(cos + i), s = load(sin + i);
    store(to + i, a * c - b * s);
    store(to + half + i, b * c + a * s);
  }
  for (; i < half; ++i) {
    const float a = interleaved ? from[2 * i] : from[i];
    const float b = interleaved ? from[2 * i + 1] : from[half + i];
    to[i] = a * cos[i] - b * sin[i];
    to[half + i] = b * cos[i] + a * sin[i];
  }
}

// This thread's rows of the latents: normed latent, roped key.
static void latent_rows(const LatentStack& stack, const LatentLayer& layer, const Step& step,
                        const LatentBuffers& b, const Team& team) {
  const int64_t width = cached_width(stack), half = stack.rope / 2;
  for (int64_t r = team.first(step.rows); r < team.last(step.rows); ++r) {
    const float* from = b.entry + (r + 1) * layer.entry.n - width;
    float* to = b.latents + r * width;
    norm_row(from, layer.latent_norm, kLatentEps, stack.latent, to, kPlain);
    const int64_t at = turn_of(step, r) * half;
    turn(from + stack.latent, step.cos + at, step.sin + at, half, stack.interleaved,
         to + stack.latent);
  }
}

static void cache_rows(const LatentStack& stack, const Step& step, int64_t index,
                       const LatentBuffers& b, const Team& team) {
  const int64_t width = cached_width(stack);
  void* cache = step.key_cache[index];
  for (int64_t r = team.first(step.rows); r < team.last(step.rows); ++r) {
    const float* from = b.latents + r * width;
    if (step.cache_kind == kCacheInt8)
      quantise_latent(from, width, stack.latent, cache, step.slots[r], step.paging.block_size);
    else if (step.cache_kind == kCacheFloat32)
      cache_head(from, width, static_cast<float*>(cache) + step.slots[r] * width);
    else
      cache_head(from, width, static_cast<uint16_t*>(cache) + step.slots[r] * width);
  }
}

// work(head, first row, rows, what to multiply next) for this thread's share of all heads and blocks
// of rows; `next` follows the last.
template <class Work>
MULL_INLINE void each_head(const LatentStack& stack, int64_t rows, const char* next,
                           const Team& team, const Work& work) {
  const int64_t blocks = ceil_div(rows, kHeadRows), items = stack.heads * blocks;
  for (int64_t i = team.first(items); i < team.last(items); ++i) {
    const int64_t first = i % blocks * kHeadRows;
    work(i / blocks, first, low(kHeadRows, rows - first), i + 1 < team.last(items) ? nullptr : next);
  }
}

// Each head's queries: the unroped part into the latent's space, the roped part turned.
static void absorb_queries(const LatentStack& stack, const LatentLayer& layer, const Step& step,
                           const LatentBuffers& b, const char* next, const Team& team) {
  const int64_t head_dim = stack.nope + stack.rope, width = cached_width(stack);
  const int64_t half = stack.rope / 2, panels = ceil_div(stack.latent, kPanel);
  const float* queries = layer.q.n ? b.queries : b.entry;
  const int64_t stride = layer.q.n ? layer.q.n : layer.entry.n;
  const int32_t form = form_of(layer.up_key);
  each_head(stack, step.rows, next, team, [&](int64_t head, int64_t first, int64_t rows, const char* then) {
    float* to = b.absorbed + (first * stack.heads + head) * width;
    for (int64_t i = 0; i < rows; ++i) {
      const float* q = queries + (first + i) * stride + head * head_dim;
      to_form(q, stack.nope, form_row(b.head_rows, form, stack.nope, i), form);
      const int64_t at = turn_of(step, first + i) * half;
      turn(q + stack.nope, step.cos + at, step.sin + at, half, stack.interleaved,
           to + i * stack.heads * width + stack.latent);
    }
    product_panels(part_of(layer.up_key, head * panels, stack.latent), b.head_rows, rows, to,
                   stack.heads * width, kStore, 0, panels, then);
  });
}

// Each head's attended latents to its values.
static void expand_values(const LatentStack& stack, const LatentLayer& layer, int64_t rows,
                          const LatentBuffers& b, const char* next, const Team& team) {
  const int64_t panels = ceil_div(stack.value, kPanel);
  const int32_t form = form_of(layer.up_value);
  each_head(stack, rows, next, team, [&](int64_t head, int64_t first, int64_t count, const char* then) {
    for (int64_t i = 0; i < count; ++i)
      to_form(b.attended + ((first + i) * stack.heads + head) * stack.latent, stack.latent,
              form_row(b.head_rows, form, stack.latent, i), form);
    product_panels(part_of(layer.up_value, head * panels, stack.value), b.head_rows, count,
                   b.expanded + (first * stack.heads + head) * stack.value,
                   stack.heads * stack.value, kStore, 0, panels, then);
  });
}

// Where the part of a per-head linear begins that this thread multiplies first.
MULL_INLINE const char* own_heads(const LatentStack& stack, const Linear& linear, int64_t n,
                                  int64_t rows, const Team& team) {
  const int64_t blocks = ceil_div(rows, kHeadRows);
  const int64_t head = team.first(stack.heads * blocks) / blocks;
  return static_cast<const char*>(linear.packed) + head * ceil_div(n, kPanel) * panel_bytes(linear);
}

// From the residual to absorbed queries and latents. Ends without a barrier.
static void latent_inputs(const LatentStack& stack, const LatentLayer& layer, const Step& step,
                          const float* x, const LatentBuffers& b, const Team& team) {
  const int64_t rows = step.rows, hidden = stack.hidden;
  const char* keys = own_heads(stack, layer.up_key, stack.latent, rows, team);
  const char* x_form = norm_rows(x, layer.input_norm, stack.eps, rows, hidden, b.narrow,
                                 form_of(layer.entry), team);
  product(layer.entry, x_form, rows, b.entry, layer.entry.n, kStore,
          layer.q.n ? own_part(layer.q, team) : keys, team);
  if (layer.q.n) {
    meet(team, &layer.q);
    const int32_t form = form_of(layer.q);
    const char* q_form = prepare_rows(
        rows, b.narrow, row_bytes_of(form, layer.q.k), team, [&](int64_t r, char* row) {
          norm_row(b.entry + r * layer.entry.n, layer.q_norm, kLatentEps, layer.q.k, row, form);
          clear_padding(row, form, layer.q.k);
        });
    product(layer.q, q_form, rows, b.queries, layer.q.n, kStore, keys, team);
  }
  meet(team, keys, layer.up_key);
  latent_rows(stack, layer, step, b, team);
  absorb_queries(stack, layer, step, b, own_heads(stack, layer.up_value, stack.value, rows, team),
                 team);
}

// From attended latents to the layer's end. `next`: the layer behind, or null.
static void latent_outputs(const LatentStack& stack, const LatentLayer& layer,
                           const LatentLayer* next, int64_t rows, float* x, const LatentBuffers& b,
                           const Team& team) {
  expand_values(stack, layer, rows, b, own_part(layer.out, team), team);
  meet(team, &layer.out);
  const char* expanded = narrowed(b.expanded, layer.out.k, layer.out, rows, b.narrow, team);
  const Linear& then = layer.router.n ? layer.router : layer.gate;
  product(layer.out, expanded, rows, x, stack.hidden, kAdd, own_part(then, team), team);
  meet(team, &then);
  mlp_half(stack, layer, next ? &next->entry : nullptr, rows, x, b.mlp, team);
}

static Attention latent_attention(const LatentStack& stack, const Step& step, int64_t index,
                                  const LatentBuffers& b) {
  Attention a{};
  a.q = b.absorbed;
  a.key = a.value = step.key_cache[index];
  a.out = b.attended;
  a.paging = step.paging;
  a.rows = step.rows;
  a.q_stride = stack.heads * cached_width(stack);
  a.out_stride = stack.heads * stack.latent;
  a.heads = stack.heads;
  a.kv_heads = 1;
  a.key_dim = a.key_token_stride = a.value_token_stride = cached_width(stack);
  a.value_dim = stack.latent;
  a.scale = stack.scale;
  a.cache_kind = step.cache_kind;
  a.is_latent = 1;
  a.out_form = kPlain;
  return a;
}
