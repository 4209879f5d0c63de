// Decoder layers of grouped-query attention and a dense gated MLP, and what they are made of:
// norm + qkv, rotation and cache write, attention, output + residual, norm + gate/up + SiLU, down +
// residual. The team runs every phase together and meets at a barrier between them.

static float norm_factor(const float* x, float eps, int64_t width) {
  vf squares{};
  int64_t i = 0;
  for (; i + W <= width; i += W) squares += load(x + i) * load(x + i);
  float total = sum(squares);
  for (; i < width; ++i) total += x[i] * x[i];
  return 1.0f / __builtin_sqrtf(total / static_cast<float>(width) + eps);
}

MULL_INLINE void scale_by(const float* x, const float* weight, float factor, int64_t count,
                          float* y) {
  int64_t i = 0;
  for (; i + W <= count; i += W) store(y + i, load(x + i) * factor * load(weight + i));
  for (; i < count; ++i) y[i] = x[i] * factor * weight[i];
}

// RMSNorm of one row; x may be y.
static void norm_row(const float* x, const float* weight, float eps, int64_t width, void* y,
                     int32_t form) {
  const float factor = norm_factor(x, eps, width);
  if (form == kPlain) return scale_by(x, weight, factor, width, static_cast<float*>(y));
  float part[4 * kGroup];
  for (int64_t i = 0; i < width; i += 4 * kGroup) {
    const int64_t count = low(4 * kGroup, width - i);
    scale_by(x + i, weight + i, factor, count, part);
    store_span(part, i, count, y, form);
  }
}

// Up to so many rows every thread prepares all of them for itself: cheaper than to meet.
constexpr int64_t kAlone = 2;

MULL_INLINE int64_t copies(int64_t rows, int threads) { return rows <= kAlone ? threads : 1; }

// prepare(r, row r of the result) for every row; the result, of use to this thread at once.
template <class Prepare>
MULL_INLINE char* prepare_rows(int64_t rows, char* y, int64_t row_bytes, const Team& team,
                               const Prepare& prepare) {
  const bool alone = rows <= kAlone;
  if (alone) y += team.id * rows * row_bytes;
  for (int64_t r = alone ? 0 : team.first(rows); r < (alone ? rows : team.last(rows)); ++r)
    prepare(r, y + r * row_bytes);
  if (!alone) team.barrier();
  return y;
}

// The normed rows, in a form that a product reads.
static const char* norm_rows(const float* x, const float* weight, float eps, int64_t rows,
                             int64_t width, char* y, int32_t form, const Team& team) {
  return prepare_rows(rows, y, row_bytes_of(form, width), team, [&](int64_t r, char* row) {
    norm_row(x + r * width, weight, eps, width, row, form);
    clear_padding(row, form, width);
  });
}

static void norm_team(const float* x, const float* weight, float eps, int64_t rows, int64_t width,
                      float* y, const Team& team) {
  for (int64_t r = team.first(rows); r < team.last(rows); ++r)
    norm_row(x + r * width, weight, eps, width, y + r * width, kPlain);
}

// Pairs (i, i + half) turned by their token's angle.
static void rotate_head(float* head, const float* cos, const float* sin, int64_t half) {
  int64_t i = 0;
  for (; i + W <= half; i += W) {
    vf a = load(head + i), b = load(head + half + i), c = load(cos + i), s = load(sin + i);
    store(head + i, a * c - b * s);
    store(head + half + i, b * c + a * s);
  }
  for (; i < half; ++i) {
    float a = head[i], b = head[half + i];
    head[i] = a * cos[i] - b * sin[i];
    head[half + i] = b * cos[i] + a * sin[i];
  }
}

// Which row of cos and sin turns a row of the step.
MULL_INLINE int64_t turn_of(const Step& step, int64_t row) {
  return step.positions ? step.positions[row] : row;
}

// One head of one token in [q heads | k heads | v heads]: norm and rotation of queries and keys.
MULL_INLINE void prepare_head(const Stack& stack, const Layer& layer, const Step& step, float* qkv,
                              int64_t row, int64_t head) {
  if (head >= stack.heads + stack.kv_heads) return;
  float* values = qkv + row * layer.qkv.n + head * stack.head_dim;
  const float* norm = head < stack.heads ? layer.q_norm : layer.k_norm;
  if (norm) norm_row(values, norm, stack.eps, stack.head_dim, values, kPlain);
  const int64_t half = stack.head_dim / 2, at = turn_of(step, row) * half;
  rotate_head(values, step.cos + at, step.sin + at, half);
}

template <class T>
MULL_INLINE void cache_head(const float* values, int64_t dim, T* to) {
  int64_t i = 0;
  for (; i + W <= dim; i += W) store(to + i, load(values + i));
  for (; i < dim; ++i) store_one(to + i, values[i]);
}

static void write_head(const Stack& stack, const Layer& layer, const Step& step, const float* qkv,
                       void* keys, void* values, int64_t row, int64_t head) {
  if (head < stack.heads) return;
  const bool is_key = head < stack.heads + stack.kv_heads;
  const int64_t kv_head = head - stack.heads - (is_key ? 0 : stack.kv_heads);
  const float* from = qkv + row * layer.qkv.n + head * stack.head_dim;
  const int64_t at = (step.slots[row] * stack.kv_heads + kv_head) * stack.head_dim;
  void* cache = is_key ? keys : values;
  if (step.cache_kind == kCacheInt8)
    quantise_head(from, stack.head_dim, cache, is_key, step.slots[row], step.paging.block_size,
                  stack.kv_heads, kv_head);
  else if (step.cache_kind == kCacheFloat32)
    cache_head(from, stack.head_dim, static_cast<float*>(cache) + at);
  else
    cache_head(from, stack.head_dim, static_cast<uint16_t*>(cache) + at);
}

// silu(gate) * up -> gate.
static void silu_times(float* gate, const float* up, int64_t count) {
  int64_t i = 0;
  for (; i + W <= count; i += W) {
    vf g = load(gate + i);
    store(gate + i, g / (exponential(-g) + 1.0f) * load(up + i));
  }
  for (; i < count; ++i) gate[i] = gate[i] / (exponential_one(-gate[i]) + 1.0f) * up[i];
}

constexpr int64_t kCounter = 8;

// Buffers of one pass, shared by its layers.
struct Buffers {
  int64_t* counters;  // per layer, a cache line apart: pieces of attention taken
  char* normed;       // normed rows, in the form of the product that follows
  char* attended;     // attention's result, in the form of `out` or, where that cannot be, float32
  char* narrow;       // the latter in the form of `out`
  char* hidden;       // silu(gate) * up, in the form of `down`
  float* qkv;
  char* attention;
};

MULL_INLINE int64_t aligned(int64_t bytes) { return round_up(bytes, 64); }

static int64_t lay_out(const Stack& stack, int64_t rows, int threads, int64_t attention_bytes,
                       char* base, Buffers* buffers) {
  const Layer& layer = stack.layers[0];
  const int64_t row_copies = rows * copies(rows, threads), width = stack.heads * stack.head_dim;
  Arena arena{base, 0};
  auto take = [&](int64_t bytes) { return arena.take<char>(bytes); };
  buffers->counters = arena.take<int64_t>(kCounter * stack.num_layers);
  buffers->normed = take(row_copies * row_bytes_of(form_of(layer.qkv), stack.hidden));
  buffers->attended = take(rows * padded(width) * 4);
  buffers->narrow = take(row_copies * row_bytes_of(form_of(layer.out), width));
  buffers->hidden = take(rows * row_bytes_of(form_of(layer.down), layer.down.k));
  buffers->qkv = arena.take<float>(rows * layer.qkv.n);
  buffers->attention = take(attention_bytes);
  return arena.used;
}

constexpr int64_t kUnit = 32;      // outputs quantised together
constexpr int64_t kChunk = 2 * kUnit;  // outputs of gate and up done in one go

// hidden = silu(gate) * up for outputs [first, last), first a multiple of 32, of up to kRowBlock rows.
static void gate_and_up(const Linear& gate, const Linear& up, const char* x, int64_t rows,
                        int64_t first, int64_t last, char* hidden, int32_t hidden_form,
                        const char* next) {
  alignas(64) float gates[kRowBlock * kChunk];
  alignas(64) float ups[kRowBlock * kChunk];
  const int64_t bytes = panel_bytes(gate);
  const char* gate_weights = static_cast<const char*>(gate.packed);
  const char* up_weights = static_cast<const char*>(up.packed);
  for (int64_t at = first; at < last; at += kChunk) {
    const int64_t end = low(at + kChunk, last);
    const int64_t panel = at / kPanel, after = ceil_div(end, kPanel);
    product_panels(gate, x, rows, gates - at, kChunk, kStore, panel, after,
                   up_weights + panel * bytes);
    product_panels(up, x, rows, ups - at, kChunk, kStore, panel, after,
                   end < last ? gate_weights + after * bytes : next);
    for (int64_t r = 0; r < rows; ++r) {
      silu_times(gates + r * kChunk, ups + r * kChunk, end - at);
      store_span(gates + r * kChunk, at, end - at, form_row(hidden, hidden_form, gate.n, r),
                 hidden_form);
    }
  }
}

static void mlp(const Stack& stack, const Layer& layer, const Linear* next, int64_t rows, float* x,
                const Buffers& buffers, const Team& team) {
  const int32_t form = form_of(layer.gate), down_form = form_of(layer.down);
  const char* normed = norm_rows(x, layer.post_norm, stack.eps, rows, stack.hidden, buffers.normed,
                                 form, team);
  const int64_t width = layer.gate.n, units = ceil_div(width, kUnit);
  const int64_t first = team.first(units) * kUnit, last = low(team.last(units) * kUnit, width);
  for (int64_t r = 0; r < rows && first < last; r += kRowBlock)
    gate_and_up(layer.gate, layer.up, normed + r * row_bytes_of(form, stack.hidden),
                low(kRowBlock, rows - r), first, last,
                buffers.hidden + r * row_bytes_of(down_form, width), down_form,
                own_part(layer.down, team));
  if (last == width)
    for (int64_t r = 0; r < rows; ++r)
      clear_padding(form_row(buffers.hidden, down_form, width, r), down_form, width);
  meet(team, &layer.down);
  product(layer.down, buffers.hidden, rows, x, stack.hidden, kAdd, next ? own_part(*next, team) : nullptr,
          team);
  meet(team, next);
}

static void output_and_mlp(const Stack& stack, int64_t index, const char* attended, int64_t rows,
                           float* x, const Buffers& buffers, const Team& team) {
  const Layer& layer = stack.layers[index];
  const Linear* next = index + 1 < stack.num_layers ? &stack.layers[index + 1].qkv : nullptr;
  product(layer.out, attended, rows, x, stack.hidden, kAdd, own_part(layer.gate, team), team);
  meet(team, &layer.gate);
  mlp(stack, layer, next, rows, x, buffers, team);
}

// float32 rows of attention's result in the form of `out`.
static const char* narrowed(const float* attended, int64_t stride, const Linear& out, int64_t rows,
                            char* y, const Team& team) {
  const int32_t form = form_of(out);
  return prepare_rows(rows, y, row_bytes_of(form, out.k), team, [&](int64_t r, char* row) {
    to_form(attended + r * stride, out.k, row, form);
  });
}

// qkv of the heads [first, last) of [q heads | k heads | v heads].
MULL_INLINE void qkv_of_heads(const Stack& stack, const Layer& layer, const char* normed,
                              int64_t rows, float* qkv, int64_t first, int64_t last,
                              const char* next) {
  const int64_t panels = stack.head_dim / kPanel;
  product_panels(layer.qkv, normed, rows, qkv, layer.qkv.n, kStore, first * panels, last * panels,
                 next);
}

// visit(row, head) for this thread's heads of qkv; whoever computes a head also rotates and caches
// it. Every thread gets its share of queries and of keys and values: the latter wait for memory.
template <class Visit>
static void project_heads(const Stack& stack, const Layer& layer, int64_t rows, const float* x,
                          float* qkv, const Buffers& buffers, const Team& team, const Visit& visit) {
  const char* normed = norm_rows(x, layer.input_norm, stack.eps, rows, stack.hidden,
                                 buffers.normed, form_of(layer.qkv), team);
  const int64_t heads = stack.heads + 2 * stack.kv_heads;
  if (stack.head_dim % kPanel == 0 && heads >= 4 * team.size) {
    const int64_t shares[2][2] = {
        {team.first(stack.heads), team.last(stack.heads)},
        {stack.heads + team.first(2 * stack.kv_heads), stack.heads + team.last(2 * stack.kv_heads)}};
    const char* keys = static_cast<const char*>(layer.qkv.packed) +
                       shares[1][0] * (stack.head_dim / kPanel) * panel_bytes(layer.qkv);
    qkv_of_heads(stack, layer, normed, rows, qkv, shares[0][0], shares[0][1], keys);
    qkv_of_heads(stack, layer, normed, rows, qkv, shares[1][0], shares[1][1],
                 own_part(layer.out, team));
    for (int64_t r = 0; r < rows; ++r)
      for (const auto& share : shares)
        for (int64_t head = share[0]; head < share[1]; ++head) visit(r, head);
  } else {
    product(layer.qkv, normed, rows, qkv, layer.qkv.n, kStore, own_part(layer.out, team), team);
    team.barrier();
    for (int64_t i = team.first(rows * heads); i < team.last(rows * heads); ++i)
      visit(i / heads, i % heads);
  }
}

// Whether attention may write its heads straight into the form of `out`.
MULL_INLINE bool attends_in_form(const Stack& stack, const Layer& layer) {
  return form_of(layer.out) != kQuantised || stack.head_dim % kGroup == 0;
}

static Attention attention_of_layer(const Stack& stack, const Layer& layer, const Step& step,
                                    int64_t index, const Buffers& buffers) {
  Attention a{};
  a.q = buffers.qkv;
  a.key = step.key_cache[index];
  a.value = step.value_cache[index];
  a.out = buffers.attended;
  a.paging = step.paging;
  a.rows = step.rows;
  a.q_stride = layer.qkv.n;
  a.heads = stack.heads;
  a.kv_heads = stack.kv_heads;
  a.key_dim = a.value_dim = stack.head_dim;
  a.key_token_stride = a.value_token_stride = stack.kv_heads * stack.head_dim;
  a.key_head_stride = a.value_head_stride = stack.head_dim;
  a.scale = stack.scale;
  a.cache_kind = step.cache_kind;
  a.out_form = attends_in_form(stack, layer) ? form_of(layer.out) : kPlain;
  a.out_stride = padded(stack.heads * stack.head_dim);
  return a;
}

// The cache lines that this thread's keys and values will go to: asked for while it computes them.
static void ask_for_slots(const Stack& stack, const Step& step, int64_t index, const Team& team) {
  const int64_t head_bytes = stack.head_dim * (step.cache_kind == kFloat32 ? 4 : 2);
  for (int64_t r = 0; r < step.rows; ++r)
    for (int64_t i = team.first(2 * stack.kv_heads); i < team.last(2 * stack.kv_heads); ++i) {
      const bool is_key = i < stack.kv_heads;
      const char* cache = static_cast<const char*>(
          is_key ? step.key_cache[index] : step.value_cache[index]);
      const int64_t head = step.slots[r] * stack.kv_heads + (is_key ? i : i - stack.kv_heads);
      for (int64_t byte = 0; byte < head_bytes; byte += 64)
        __builtin_prefetch(cache + head * head_bytes + byte, 1, 2);
    }
}

static void run_layer(const Stack& stack, int64_t index, const Step& step, float* x,
                      const Buffers& buffers, const Team& team) {
  const Layer& layer = stack.layers[index];
  if (step.rows <= kRowBlock) ask_for_slots(stack, step, index, team);
  project_heads(stack, layer, step.rows, x, buffers.qkv, buffers, team, [&](int64_t row, int64_t head) {
    prepare_head(stack, layer, step, buffers.qkv, row, head);
    write_head(stack, layer, step, buffers.qkv, step.key_cache[index], step.value_cache[index], row,
               head);
  });
  const Attention a = attention_of_layer(stack, layer, step, index, buffers);
  const int64_t width = stack.heads * stack.head_dim;
  for (int64_t r = team.first(step.rows); r < team.last(step.rows); ++r)
    clear_padding(form_row(buffers.attended, a.out_form, width, r), a.out_form, width);
  meet(team, &layer.out);
  attention_team(&a, buffers.counters + index * kCounter, buffers.attention, team);
  meet(team, &layer.out);
  const char* attended = buffers.attended;
  if (a.out_form != form_of(layer.out))
    attended = narrowed(reinterpret_cast<const float*>(attended), a.out_stride, layer.out, step.rows,
                        buffers.narrow, team);
  output_and_mlp(stack, index, attended, step.rows, x, buffers, team);
}

static size_t stack_scratch(const Stack* stack, const Step* step, int threads) {
  Buffers buffers{};
  int64_t attention_bytes = 0;
  if (step->paging.sequences > 0) {
    const Attention a = attention_of_layer(*stack, stack->layers[0], *step, 0, buffers);
    attention_bytes = static_cast<int64_t>(attention_scratch(&a, threads));
  }
  return static_cast<size_t>(lay_out(*stack, step->rows, threads, attention_bytes, nullptr, &buffers));
}

static void stack_team(const Stack* stack, const Step* step, float* x, char* scratch,
                       const Team& team) {
  Buffers buffers;
  lay_out(*stack, step->rows, team.size, 0, scratch, &buffers);
  if (team.id == 0)
    for (int64_t i = 0; i < kCounter * stack->num_layers; ++i) buffers.counters[i] = 0;
  for (int64_t i = 0; i < stack->num_layers; ++i) run_layer(*stack, i, *step, x, buffers, team);
  if (stack->final_norm)
    norm_team(x, stack->final_norm, stack->eps, step->rows, stack->hidden, x, team);
}

// The halves of a layer on either side of an attention done elsewhere.
static void attention_inputs(const Stack* stack, int64_t index, const Step* step, const float* x,
                             float* qkv, char* scratch, const Team& team) {
  const Layer& layer = stack->layers[index];
  Buffers buffers;
  lay_out(*stack, step->rows, team.size, 0, scratch, &buffers);
  project_heads(*stack, layer, step->rows, x, qkv, buffers, team, [&](int64_t row, int64_t head) {
    prepare_head(*stack, layer, *step, qkv, row, head);
  });
}

static void attention_outputs(const Stack* stack, int64_t index, int64_t rows,
                              const float* attended, float* x, char* scratch, const Team& team) {
  const Layer& layer = stack->layers[index];
  Buffers buffers;
  lay_out(*stack, rows, team.size, 0, scratch, &buffers);
  const char* narrow = narrowed(attended, layer.out.k, layer.out, rows, buffers.narrow, team);
  output_and_mlp(*stack, index, narrow, rows, x, buffers, team);
}
