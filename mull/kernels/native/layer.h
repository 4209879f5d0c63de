// Decoder layers of grouped-query attention and a dense gated MLP, and what they are made of:
// norm + qkv, rotation and cache write, attention, output + residual, norm + gate/up + SiLU, down +
// residual. The team runs every phase together and meets at a barrier between them.

static void norm_row(const float* x, const float* weight, float eps, int64_t width, void* y,
                     int32_t form) {
  vf squares{};
  int64_t i = 0;
  for (; i + W <= width; i += W) squares += load(x + i) * load(x + i);
  float total = sum(squares);
  for (; i < width; ++i) total += x[i] * x[i];
  const float factor = 1.0f / __builtin_sqrtf(total / static_cast<float>(width) + eps);
  for (i = 0; i + W <= width; i += W)
    store_form(y, form, i, load(x + i) * factor * load(weight + i));
  for (; i < width; ++i) store_form_one(y, form, i, x[i] * factor * weight[i]);
}

static void norm_rows(const float* x, const float* weight, float eps, int64_t rows, int64_t width,
                      void* y, int32_t form, const Team& team) {
  for (int64_t r = team.first(rows); r < team.last(rows); ++r) {
    void* row = form_row(y, form, width, r);
    norm_row(x + r * width, weight, eps, width, row, form);
    clear_padding(row, form, width);
  }
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

// One head of one token in [q heads | k heads | v heads]: norm and rotation of queries and keys.
MULL_INLINE void prepare_head(const Stack& stack, const Layer& layer, const Step& step, float* qkv,
                              int64_t row, int64_t head) {
  if (head >= stack.heads + stack.kv_heads) return;
  float* values = qkv + row * layer.qkv.n + head * stack.head_dim;
  const float* norm = head < stack.heads ? layer.q_norm : layer.k_norm;
  if (norm) norm_row(values, norm, stack.eps, stack.head_dim, values, kPlain);
  const int64_t half = stack.head_dim / 2;
  rotate_head(values, step.cos + row * half, step.sin + row * half, half);
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
  if (step.cache_kind == kFloat32)
    cache_head(from, stack.head_dim, static_cast<float*>(cache) + at);
  else
    cache_head(from, stack.head_dim, static_cast<uint16_t*>(cache) + at);
}

static void silu_times(const float* gate, const float* up, int64_t first, int64_t last, void* out,
                       int32_t form) {
  int64_t i = first;
  for (; i + W <= last; i += W) {
    vf g = load(gate + i);
    store_form(out, form, i, g / (exponential(-g) + 1.0f) * load(up + i));
  }
  for (; i < last; ++i)
    store_form_one(out, form, i, gate[i] / (exponential_one(-gate[i]) + 1.0f) * up[i]);
}

constexpr int64_t kCounter = 8;

// Buffers of one pass, shared by its layers.
struct Buffers {
  int64_t* counters;  // per layer, a cache line apart: pieces of attention taken
  char* narrow;    // activations as products read them: normed rows, then attended rows
  char* hidden;    // silu(gate) * up, as `down` reads it
  float* qkv;
  float* gate;
  float* up;
  char* attention;
};

MULL_INLINE int64_t aligned(int64_t bytes) { return round_up(bytes, 64); }

static int64_t lay_out(const Stack& stack, int64_t rows, int64_t attention_bytes, char* base,
                       Buffers* buffers) {
  const Layer& layer = stack.layers[0];
  const int64_t widest = high(stack.hidden, stack.heads * stack.head_dim);
  char* p = base;
  buffers->counters = reinterpret_cast<int64_t*>(p), p += 8 * kCounter * stack.num_layers;
  buffers->narrow = p, p += aligned(rows * padded(widest) * 4);
  buffers->hidden = p, p += aligned(rows * padded(layer.down.k) * 4);
  buffers->qkv = reinterpret_cast<float*>(p), p += aligned(rows * layer.qkv.n * 4);
  buffers->gate = reinterpret_cast<float*>(p), p += aligned(rows * layer.gate.n * 4);
  buffers->up = reinterpret_cast<float*>(p), p += aligned(rows * layer.up.n * 4);
  buffers->attention = p, p += aligned(attention_bytes);
  return p - base;
}

static void mlp(const Stack& stack, const Layer& layer, const Linear* next, int64_t rows, float* x,
                const Buffers& buffers, const Team& team) {
  const int32_t form = form_of(layer.gate), down_form = form_of(layer.down);
  norm_rows(x, layer.post_norm, stack.eps, rows, stack.hidden, buffers.narrow, form, team);
  team.barrier();
  const int64_t width = layer.gate.n, panels = panels_of(layer.gate);
  const int64_t first = team.first(panels), last = team.last(panels);
  product(layer.gate, buffers.narrow, rows, buffers.gate, width, kStore, &layer.up, team);
  product(layer.up, buffers.narrow, rows, buffers.up, width, kStore, &layer.down, team);
  for (int64_t r = 0; r < rows; ++r) {
    void* row = form_row(buffers.hidden, down_form, width, r);
    silu_times(buffers.gate + r * width, buffers.up + r * width, first * kPanel,
               low(last * kPanel, width), row, down_form);
    if (last == panels) clear_padding(row, down_form, width);
  }
  team.barrier();
  product(layer.down, buffers.hidden, rows, x, stack.hidden, kAdd, next, team);
  team.barrier();
}

// attended rows in buffers.narrow, in the form of the layer's `out`.
static void output_and_mlp(const Stack& stack, int64_t index, int64_t rows, float* x,
                           const Buffers& buffers, const Team& team) {
  const Layer& layer = stack.layers[index];
  const Linear* next = index + 1 < stack.num_layers ? &stack.layers[index + 1].qkv : nullptr;
  product(layer.out, buffers.narrow, rows, x, stack.hidden, kAdd, &layer.gate, team);
  team.barrier();
  mlp(stack, layer, next, rows, x, buffers, team);
}

static void norm_and_qkv(const Stack& stack, const Layer& layer, int64_t rows, const float* x,
                         float* qkv, const Buffers& buffers, const Team& team) {
  norm_rows(x, layer.input_norm, stack.eps, rows, stack.hidden, buffers.narrow,
            form_of(layer.qkv), team);
  team.barrier();
  product(layer.qkv, buffers.narrow, rows, qkv, layer.qkv.n, kStore, &layer.out, team);
  team.barrier();
}

static Attention attention_of_layer(const Stack& stack, const Layer& layer, const Step& step,
                                    int64_t index, const Buffers& buffers) {
  Attention a{};
  a.q = buffers.qkv;
  a.key = step.key_cache[index];
  a.value = step.value_cache[index];
  a.out = buffers.narrow;
  a.paging = step.paging;
  a.rows = step.rows;
  a.q_stride = layer.qkv.n;
  a.out_stride = padded(stack.heads * stack.head_dim);
  a.heads = stack.heads;
  a.kv_heads = stack.kv_heads;
  a.key_dim = a.value_dim = stack.head_dim;
  a.key_token_stride = a.value_token_stride = stack.kv_heads * stack.head_dim;
  a.key_head_stride = a.value_head_stride = stack.head_dim;
  a.scale = stack.scale;
  a.cache_kind = step.cache_kind;
  a.out_form = form_of(layer.out);
  return a;
}

static void run_layer(const Stack& stack, int64_t index, const Step& step, float* x,
                      const Buffers& buffers, const Team& team) {
  const Layer& layer = stack.layers[index];
  norm_and_qkv(stack, layer, step.rows, x, buffers.qkv, buffers, team);
  const int64_t heads = stack.heads + 2 * stack.kv_heads, items = step.rows * heads;
  for (int64_t i = team.first(items); i < team.last(items); ++i) {
    prepare_head(stack, layer, step, buffers.qkv, i / heads, i % heads);
    write_head(stack, layer, step, buffers.qkv, step.key_cache[index], step.value_cache[index],
               i / heads, i % heads);
  }
  const Attention a = attention_of_layer(stack, layer, step, index, buffers);
  const int64_t width = stack.heads * stack.head_dim;
  for (int64_t r = team.first(step.rows); r < team.last(step.rows); ++r)
    clear_padding(form_row(buffers.narrow, a.out_form, width, r), a.out_form, width);
  team.barrier();
  attention_team(&a, buffers.counters + index * kCounter, buffers.attention, team);
  team.barrier();
  output_and_mlp(stack, index, step.rows, x, buffers, team);
}

static size_t stack_scratch(const Stack* stack, const Step* step, int threads) {
  Buffers buffers{};
  int64_t attention_bytes = 0;
  if (step->paging.sequences > 0) {
    const Attention a = attention_of_layer(*stack, stack->layers[0], *step, 0, buffers);
    attention_bytes = static_cast<int64_t>(attention_scratch(&a, threads));
  }
  return static_cast<size_t>(lay_out(*stack, step->rows, attention_bytes, nullptr, &buffers));
}

static void stack_team(const Stack* stack, const Step* step, float* x, char* scratch,
                       const Team& team) {
  Buffers buffers;
  lay_out(*stack, step->rows, 0, scratch, &buffers);
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
  lay_out(*stack, step->rows, 0, scratch, &buffers);
  norm_and_qkv(*stack, layer, step->rows, x, qkv, buffers, team);
  const int64_t heads = stack->heads + stack->kv_heads, items = step->rows * heads;
  for (int64_t i = team.first(items); i < team.last(items); ++i)
    prepare_head(*stack, layer, *step, qkv, i / heads, i % heads);
}

static void attention_outputs(const Stack* stack, int64_t index, int64_t rows,
                              const float* attended, float* x, char* scratch, const Team& team) {
  const Layer& layer = stack->layers[index];
  Buffers buffers;
  lay_out(*stack, rows, 0, scratch, &buffers);
  const int64_t width = layer.out.k;
  const int32_t form = form_of(layer.out);
  for (int64_t r = team.first(rows); r < team.last(rows); ++r)
    to_form(attended + r * width, width, form_row(buffers.narrow, form, width, r), form);
  team.barrier();
  output_and_mlp(*stack, index, rows, x, buffers, team);
}
