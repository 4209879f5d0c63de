// The layers of latent.h and moe.h one after another, and the memory they share.

// The widest need of any layer: the first ones may have no experts.
struct Widths {
  int64_t entry, rank, queries, narrow, gated, experts, pairs;
};

static Widths widths_of(const LatentStack& stack, int64_t rows) {
  Widths w{};
  for (int64_t i = 0; i < stack.num_layers; ++i) {
    const LatentLayer& layer = stack.layers[i];
    w.entry = high(w.entry, layer.entry.n);
    w.rank = high(w.rank, layer.q.k);
    w.queries = high(w.queries, layer.q.n);
    w.narrow = high(w.narrow, high(layer.entry.k, high(layer.q.k, layer.out.k)));
    w.gated = high(w.gated, layer.down.k);
    if (layer.router.n) w.experts = layer.expert_down.k;
  }
  w.pairs = w.experts ? rows * stack.routing.chosen : 0;
  return w;
}

static void lay_out_local(const LatentStack& stack, const Widths& w, Arena* arena,
                          LatentBuffers* b) {
  const int64_t experts = w.experts ? stack.routing.experts : 0;
  MlpLocal& local = b->mlp.local;
  local.down = arena->take<float>(high(kDownFloats, w.pairs * kUnit));
  local.router.ranks = arena->take<float>(experts);
  local.router.group_scores = arena->take<float>(experts);
  local.router.taken = arena->take<char>(experts);
  local.router.group_taken = arena->take<char>(experts);
  local.groups.starts = arena->take<int32_t>(experts + 1);
  local.groups.active = arena->take<int32_t>(experts);
  local.groups.rows = arena->take<int32_t>(w.pairs);
  local.groups.places = arena->take<int32_t>(w.pairs);
  local.experts = arena->take<int32_t>(experts);
  local.weights = arena->take<float>(experts);
  const int64_t head = high(stack.latent, stack.nope);
  b->head_rows = arena->take<char>(form_rows_bytes(kPlain, head, kHeadRows));
}

// float32 is the widest form, so every buffer of rows holds any other.
static int64_t lay_out(const LatentStack& stack, const Step& step, int64_t attention_bytes,
                       char* base, int threads, int id, LatentBuffers* b) {
  const int64_t rows = step.rows, row_copies = rows * copies(rows, threads);
  const Widths w = widths_of(stack, rows);
  Arena arena{base, 0};
  b->counters = arena.take<int64_t>(kCounter * stack.num_layers);
  b->narrow = arena.take<char>(form_rows_bytes(kPlain, w.narrow, row_copies));
  b->entry = arena.take<float>(rows * w.entry);
  b->queries = arena.take<float>(rows * w.queries);
  b->latents = arena.take<float>(rows * cached_width(stack));
  b->absorbed = arena.take<float>(rows * stack.heads * cached_width(stack));
  b->attended = arena.take<float>(rows * stack.heads * stack.latent);
  b->expanded = arena.take<float>(rows * stack.heads * stack.value);
  b->mlp.plain = arena.take<char>(form_rows_bytes(kPlain, stack.hidden, row_copies));
  b->mlp.narrow = arena.take<char>(form_rows_bytes(kPlain, stack.hidden, row_copies));
  b->mlp.gathered = arena.take<char>(form_rows_bytes(kPlain, stack.hidden, w.pairs));
  b->mlp.hidden = arena.take<char>(form_rows_bytes(kPlain, w.experts, w.pairs));
  b->mlp.shared = arena.take<char>(form_rows_bytes(kPlain, w.gated, rows));
  b->mlp.logits = arena.take<float>(w.experts ? rows * stack.routing.experts : 0);
  b->mlp.experts = arena.take<int32_t>(w.pairs);
  b->mlp.weights = arena.take<float>(w.pairs);
  b->attention = arena.take<char>(attention_bytes);
  for (int thread = 0; thread < threads; ++thread) {
    LatentBuffers own = *b;
    lay_out_local(stack, w, &arena, &own);
    if (thread == id) *b = own;
  }
  return arena.used;
}

static int64_t latent_attention_bytes(const LatentStack& stack, const Step& step, int threads) {
  if (step.paging.sequences == 0) return 0;
  const Attention a = latent_attention(stack, step, 0, LatentBuffers{});
  return static_cast<int64_t>(attention_scratch(&a, threads));
}

static size_t latent_scratch(const LatentStack* stack, const Step* step, int threads) {
  LatentBuffers b{};
  const int64_t attention = latent_attention_bytes(*stack, *step, threads);
  return static_cast<size_t>(lay_out(*stack, *step, attention, nullptr, threads, 0, &b));
}

static void latent_team(const LatentStack* stack, const Step* step, float* x, char* scratch,
                        const Team& team) {
  LatentBuffers b{};
  lay_out(*stack, *step, latent_attention_bytes(*stack, *step, team.size), scratch, team.size,
          team.id, &b);
  if (team.id == 0)
    for (int64_t i = 0; i < kCounter * stack->num_layers; ++i) b.counters[i] = 0;
  for (int64_t i = 0; i < stack->num_layers; ++i) {
    const LatentLayer& layer = stack->layers[i];
    latent_inputs(*stack, layer, *step, x, b, team);
    cache_rows(*stack, *step, i, b, team);
    meet(team, own_heads(*stack, layer.up_value, stack->value, step->rows, team), layer.up_value);
    const Attention a = latent_attention(*stack, *step, i, b);
    attention_team(&a, b.counters + i * kCounter, b.attention, team);
    meet(team, own_heads(*stack, layer.up_value, stack->value, step->rows, team), layer.up_value);
    latent_outputs(*stack, layer, i + 1 < stack->num_layers ? &stack->layers[i + 1] : nullptr,
                   step->rows, x, b, team);
  }
  if (stack->final_norm)
    norm_team(x, stack->final_norm, stack->eps, step->rows, stack->hidden, x, team);
}
