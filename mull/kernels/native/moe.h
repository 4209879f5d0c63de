// The second half of a layer: norm, then a dense gated MLP, or routed and shared experts. All
// active experts' panels are split between the threads in one phase for gate and up and one for
// down: an expert alone is too little work for a team. A row's result is summed in the order of its
// own choices, so it does not depend on the rows beside it.

constexpr int64_t kDownFloats = 1 << 18;  // of the experts' results kept before they are summed

MULL_INLINE int64_t mlp_columns(int64_t floats, int64_t rows) {
  return high(kUnit, floats / high(rows, static_cast<int64_t>(1)) / kUnit * kUnit);
}

// What one thread needs for itself.
struct MlpLocal {
  float* down;
  RouterScratch router;
  Groups groups;
  int32_t* experts;  // [chosen]: the choice of a single row
  float* weights;
};

struct MlpBuffers {
  char* plain;     // [rows]: normed rows as the router reads them
  char* narrow;    // [rows]: normed rows as gate and up read them
  char* gathered;  // [rows * chosen]: the same, sorted by expert
  char* hidden;    // [rows * chosen]: silu(gate) * up as the experts' `down` reads it
  char* shared;    // [rows]: the same for the dense MLP or the shared experts
  float* logits;   // [rows, experts]
  int32_t* experts;  // [rows, chosen]
  float* weights;
  MlpLocal local;
};

MULL_INLINE int64_t form_rows_bytes(int32_t form, int64_t width, int64_t rows) {
  return aligned(rows * row_bytes_of(form, width));
}

// Panels from `first` on as a linear of n outputs.
MULL_INLINE Linear part_of(const Linear& linear, int64_t first, int64_t n) {
  Linear part = linear;
  part.packed = static_cast<const char*>(linear.packed) + first * panel_bytes(linear);
  part.n = n;
  return part;
}

// Columns [first, last) of silu(gate) * up; `first` is a multiple of kUnit.
static void gated_columns(const Linear& gate, const Linear& up, const void* x, int64_t rows,
                          int64_t first, int64_t last, void* hidden, int32_t form,
                          const char* next) {
  const int64_t width = gate.n;
  for (int64_t r = 0; r < rows && first < last; r += kRowBlock) {
    const int64_t count = low(kRowBlock, rows - r);
    char* block = static_cast<char*>(form_row(hidden, form, width, r));
    gate_and_up(gate, up, static_cast<const char*>(x) + r * row_bytes_of(form_of(gate), gate.k),
                count, first, last, block, form, next);
    for (int64_t i = 0; i < count && last == width; ++i)
      clear_padding(form_row(block, form, width, i), form, width);
  }
}

// This thread's share of the dense MLP's, or the shared experts', hidden rows.
static void dense_hidden(const LatentLayer& layer, int64_t rows, const MlpBuffers& b,
                         const Team& team) {
  const int64_t width = layer.gate.n, units = ceil_div(width, kUnit);
  gated_columns(layer.gate, layer.up, b.narrow, rows, team.first(units) * kUnit,
                low(team.last(units) * kUnit, width), b.shared, form_of(layer.down),
                own_part(layer.down, team));
}

// Thread `id`'s first unit of the index-th of `count` experts: units are dealt out in turn, so that
// what does not divide evenly falls to different threads.
MULL_INLINE int64_t first_unit(int64_t units, int64_t index, int64_t count, int64_t id,
                               const Team& team) {
  return (units * count * id / team.size + count - 1 - index) / count;
}

// Panels of one expert from `panel` on.
MULL_INLINE const char* panel_of(const Linear& experts, int64_t expert_panels, int64_t panel) {
  return static_cast<const char*>(experts.packed) + (expert_panels + panel) * panel_bytes(experts);
}

// Where this thread's columns of the index-th expert's gate begin.
MULL_INLINE const char* own_gate(const LatentLayer& layer, const Groups& groups, int64_t index,
                                 const Team& team) {
  const int64_t width = layer.expert_down.k, panels = width / kPanel;
  const int64_t unit = first_unit(width / kUnit, index, groups.num_active, team.id, team);
  return panel_of(layer.expert_gate_up, 2 * groups.active[index] * panels, unit * (kUnit / kPanel));
}

// Where its columns of the index-th expert's `down` begin.
MULL_INLINE const char* own_down(const LatentStack& stack, const LatentLayer& layer,
                                 const Groups& groups, int64_t index, int64_t panel) {
  return panel_of(layer.expert_down, groups.active[index] * ceil_div(stack.hidden, kPanel), panel);
}

static void expert_hidden(const LatentStack& stack, const LatentLayer& layer, const MlpBuffers& b,
                          const Team& team) {
  const Groups& groups = b.local.groups;
  const int64_t width = layer.expert_down.k, panels = width / kPanel, units = width / kUnit;
  const int32_t form = form_of(layer.expert_gate_up), down_form = form_of(layer.expert_down);
  const char* down =
      own_down(stack, layer, groups, 0, team.first(ceil_div(stack.hidden, kPanel)));
  for (int64_t i = 0; i < groups.num_active; ++i) {
    const int64_t e = groups.active[i], start = groups.starts[e];
    const int64_t rows = groups.starts[e + 1] - start;
    const char* next = i + 1 < groups.num_active ? own_gate(layer, groups, i + 1, team) : down;
    const void* x = rows == 1 ? form_row(b.narrow, form, stack.hidden, groups.rows[start])
                              : form_row(b.gathered, form, stack.hidden, start);
    gated_columns(part_of(layer.expert_gate_up, 2 * e * panels, width),
                  part_of(layer.expert_gate_up, (2 * e + 1) * panels, width), x, rows,
                  first_unit(units, i, groups.num_active, team.id, team) * kUnit,
                  first_unit(units, i, groups.num_active, team.id + 1, team) * kUnit,
                  form_row(b.hidden, down_form, width, start), down_form, next);
  }
}

// x[columns] += the weighted results of a row's experts.
static void add_experts(const LatentStack& stack, const MlpBuffers& b, const int32_t* places,
                        const float* weights, int64_t first, int64_t count, int64_t stride,
                        float* x) {
  const int64_t chosen = stack.routing.chosen;
  const float* down = b.local.down;
  int64_t i = 0;
  for (; i + W <= count; i += W) {
    vf total = load(down + places[0] * stride + i) * weights[0];
    for (int64_t j = 1; j < chosen; ++j)
      total += load(down + places[j] * stride + i) * weights[j];
    store(x + first + i, load(x + first + i) + total);
  }
  for (; i < count; ++i) {
    float total = down[places[0] * stride + i] * weights[0];
    for (int64_t j = 1; j < chosen; ++j) total += down[places[j] * stride + i] * weights[j];
    x[first + i] += total;
  }
}

// This thread's columns of x += weighted routed experts.
static void expert_outputs(const LatentStack& stack, const LatentLayer& layer, const Linear* next,
                           int64_t rows, const float* weights, float* x, const MlpBuffers& b,
                           const Team& team) {
  const Groups& groups = b.local.groups;
  const int64_t chosen = stack.routing.chosen, width = layer.expert_down.k;
  const int64_t panels = ceil_div(stack.hidden, kPanel), last = team.last(panels);
  const int64_t block = mlp_columns(kDownFloats, rows * chosen) / kPanel, stride = block * kPanel;
  const int32_t form = form_of(layer.expert_down);
  for (int64_t panel = team.first(panels); panel < last; panel += block) {
    const int64_t count = low(block, last - panel), column = panel * kPanel;
    for (int64_t i = 0; i < groups.num_active; ++i) {
      const int64_t e = groups.active[i], start = groups.starts[e];
      const char* then = i + 1 < groups.num_active ? own_down(stack, layer, groups, i + 1, panel)
                         : panel + count < last ? own_down(stack, layer, groups, 0, panel + count)
                         : next                 ? own_part(*next, team)
                                                : nullptr;
      product_panels(part_of(layer.expert_down, e * panels + panel, count * kPanel),
                     form_row(b.hidden, form, width, start), groups.starts[e + 1] - start,
                     b.local.down + start * stride, stride, kStore, 0, count, then);
    }
    const int64_t columns = low(count * kPanel, stack.hidden - column);
    for (int64_t r = 0; r < rows; ++r)
      add_experts(stack, b, groups.places + r * chosen, weights + r * chosen, column, columns,
                  stride, x + r * stack.hidden);
  }
}

static void gather_rows(const LatentStack& stack, const LatentLayer& layer, const MlpBuffers& b,
                        const Team& team) {
  const Groups& groups = b.local.groups;
  const int64_t pairs = groups.starts[stack.routing.experts];
  const int32_t form = form_of(layer.expert_gate_up);
  const size_t bytes = static_cast<char*>(form_row(b.narrow, form, stack.hidden, 1)) - b.narrow;
  for (int64_t p = team.first(pairs); p < team.last(pairs); ++p)
    __builtin_memcpy(form_row(b.gathered, form, stack.hidden, p),
                     form_row(b.narrow, form, stack.hidden, groups.rows[p]), bytes);
}

static void mixture(const LatentStack& stack, const LatentLayer& layer, const Linear* next,
                    int64_t rows, float* x, MlpBuffers b, const Team& team) {
  const Routing& routing = stack.routing;
  const bool has_shared = layer.down.n > 0;
  product(layer.router, b.plain, rows, b.logits, routing.experts, kStore,
          has_shared ? own_part(layer.gate, team) : nullptr, team);
  if (has_shared) dense_hidden(layer, rows, b, team);
  meet(team, has_shared ? &layer.down : nullptr);
  // A single row is routed by every thread for itself, sooner than one could tell the others.
  const bool alone = rows == 1;
  int32_t* experts = alone ? b.local.experts : b.experts;
  float* weights = alone ? b.local.weights : b.weights;
  float* logits = b.logits;
  if (alone) {
    __builtin_memcpy(b.local.down, logits, routing.experts * sizeof(float));
    logits = b.local.down;
  }
  for (int64_t r = alone ? 0 : team.first(rows); r < (alone ? 1 : team.last(rows)); ++r)
    choose_experts(routing, layer.selection_bias, logits + r * routing.experts, b.local.router,
                   experts + r * routing.chosen, weights + r * routing.chosen);
  if (!alone) team.barrier();
  group_rows(routing, experts, rows, &b.local.groups);
  if (has_shared)
    product(layer.down, b.shared, rows, x, stack.hidden, kAdd, own_gate(layer, b.local.groups, 0, team),
            team);
  if (!alone) {
    gather_rows(stack, layer, b, team);
    team.barrier();
  }
  expert_hidden(stack, layer, b, team);
  meet(team, own_down(stack, layer, b.local.groups, 0, team.first(ceil_div(stack.hidden, kPanel))),
       layer.expert_down);
  expert_outputs(stack, layer, next, rows, weights, x, b, team);
}

// x += mlp(norm(x)). Begins with x whole and ends with it whole. `next`: multiplied afterwards, or
// null.
static void mlp_half(const LatentStack& stack, const LatentLayer& layer, const Linear* next,
                     int64_t rows, float* x, MlpBuffers b, const Team& team) {
  const bool has_experts = layer.router.n > 0;
  const int32_t form = form_of(has_experts ? layer.expert_gate_up : layer.gate);
  const int64_t plain_bytes = row_bytes_of(kPlain, stack.hidden);
  if (rows <= kAlone) b.plain += team.id * rows * plain_bytes;
  b.narrow = prepare_rows(
      rows, b.narrow, row_bytes_of(form, stack.hidden), team, [&](int64_t r, char* narrow) {
        float* plain = reinterpret_cast<float*>(b.plain + r * plain_bytes);
        norm_row(x + r * stack.hidden, layer.post_norm, stack.eps, stack.hidden, plain, kPlain);
        clear_padding(plain, kPlain, stack.hidden);
        to_form(plain, stack.hidden, narrow, form);
      });
  if (has_experts) {
    mixture(stack, layer, next, rows, x, b, team);
  } else {
    dense_hidden(layer, rows, b, team);
    meet(team, &layer.down);
    product(layer.down, b.shared, rows, x, stack.hidden, kAdd, next ? own_part(*next, team) : nullptr,
            team);
  }
  meet(team, next);
}
