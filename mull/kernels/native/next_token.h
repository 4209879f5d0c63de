// One depth of multi-token prediction: its inputs joined, then the layer of latent_stack.h.

static int64_t joined_bytes(const NextToken& module, int64_t rows) {
  return round_up(static_cast<int64_t>(linear_scratch(&module.join, rows)), 64);
}

// Beside the layer's memory: rows of `join` in form, and one plain row for each thread.
static size_t next_token_scratch(const NextToken* module, const Step* step, int threads) {
  const int64_t row = round_up(module->join.k * 4, 64);
  return static_cast<size_t>(joined_bytes(*module, step->rows) + threads * row) +
         latent_scratch(&module->stack, step, threads);
}

// embedded: the next token's row of every row of hidden; x: where the result goes, [rows, hidden].
static void next_token_team(const NextToken* module, const Step* step, const float* hidden,
                            const float* embedded, float* x, char* scratch, const Team& team) {
  const LatentStack& stack = module->stack;
  const Linear& join = module->join;
  const int64_t width = stack.hidden, row_bytes = round_up(join.k * 4, 64);
  const int32_t form = form_of(join);
  char* plain = scratch + joined_bytes(*module, step->rows);
  float* row = reinterpret_cast<float*>(plain + team.id * row_bytes);
  for (int64_t r = team.first(step->rows); r < team.last(step->rows); ++r) {
    norm_row(embedded + r * width, module->token_norm, stack.eps, width, row, kPlain);
    norm_row(hidden + r * width, module->hidden_norm, stack.eps, width, row + width, kPlain);
    to_form(row, join.k, form_row(scratch, form, join.k, r), form);
  }
  team.barrier();
  product(join, scratch, step->rows, x, width, kStore, nullptr, team);
  team.barrier();
  latent_team(&stack, step, x, plain + team.size * row_bytes, team);
}
