// Tokens that may follow, one after the other, each from what multi-token prediction made of the
// guess before (engine/mtp.py says when and for whom).
#include <time.h>

#include "abi.h"
#include "team.h"

namespace {

double seconds_now() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Rows are in falling order of room, so those that go on come first.
int64_t rows_with_room(const Guess& g, int64_t passes) {
  int64_t rows = 0;
  while (rows < g.rows && g.room[rows] >= passes) ++rows;
  return rows;
}

// How often a guess this deep and this sure comes true.
double rate_of(const Guess& g, int64_t depth, float sureness) {
  const int64_t place = static_cast<int64_t>(sureness * static_cast<float>(g.surenesses));
  const int64_t last = g.surenesses - 1, deepest = g.rated_depths - 1;
  return g.rates[(depth < deepest ? depth : deepest) * g.surenesses + (place < last ? place : last)];
}

}  // namespace

MULL_EXPORT int32_t mull_guess(Guess* guess, int32_t threads) {
  Guess& g = *guess;
  Step step = g.step;
  double expected = g.expected, begin = 0.0;
  g.further_seconds = 0.0;
  for (int64_t r = 0; r < g.rows; ++r) g.chances[r] = 1.0;
  bool goes_on = true;
  for (g.passes = 0; goes_on && g.passes < g.depth;) {
    const int64_t rows = rows_with_room(g, g.passes), at = g.passes * g.rows;
    if (rows == 0) break;
    if (g.passes) {
      place_rows(g.places, rows, g.passes, &step);
      step.ids = g.tokens + at - g.rows;
      if (int32_t status = mull_next_token(g.module, &step, g.hidden, g.hidden, threads))
        return status;
    }
    if (int32_t status = mull_linear(g.head, g.hidden, rows, g.logits, threads)) return status;
    Draw draw{};
    draw.logits = g.logits;
    draw.inverse_temperature = g.inverse_temperature;
    draw.noise = g.noise + at;
    draw.tokens = g.tokens + at;
    draw.sureness = g.sureness + at;
    draw.rows = rows;
    draw.vocabulary = g.vocabulary;
    draw.stride = g.head->n;
    if (int32_t status = mull_draw(&draw, threads)) return status;
    double likely = 0.0;
    for (int64_t r = 0; r < rows; ++r) {
      goes_on = g.tokens[at + r] >= 0;
      if (!goes_on) break;
      likely += g.chances[r] *= rate_of(g, g.passes, g.sureness[at + r]);
    }
    if (!goes_on) break;  // damaged weights of the module: nothing more to say
    for (int64_t r = rows; r < g.rows; ++r) g.tokens[at + r] = -1;
    expected += likely;
    if (++g.passes == 1) begin = seconds_now();
    const double more = likely * g.means[g.passes];
    const bool pays = (expected + more) * g.costs[g.passes] > expected * g.costs[g.passes + 1];
    goes_on = pays || g.passes < g.least_depth;
  }
  if (g.passes > 1) g.further_seconds = seconds_now() - begin;
  return kOk;
}

namespace {

bool is_an_end(const GuessedSteps& g, int64_t token) {
  for (int64_t i = 0; i < g.ends_each; ++i)
    if (g.ends[i] == token) return true;
  return false;
}

int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

// Rows from position `at` on, one after the other in one sequence.
void place_together(const GuessedSteps& g, int64_t at, int64_t rows, Step* step) {
  Paging& paging = step->paging;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t index = (at + i) / paging.block_size;
    const int32_t block = index < paging.blocks_per_sequence ? paging.block_table[index] : -1;
    g.positions[i] = at + i;
    g.slots[i] = static_cast<int32_t>(block * paging.block_size + (at + i) % paging.block_size);
  }
  g.bounds[0] = static_cast<int32_t>(at + rows);
  g.bounds[1] = 0;
  g.bounds[2] = static_cast<int32_t>(rows);
  step->rows = rows;
  step->ids = g.ids;
  step->positions = g.positions;
  step->slots = g.slots;
  paging.sequences = 1;
  paging.context = g.bounds;
  paging.query_starts = g.bounds + 1;
}

// How many guesses of the draft to check: as many as bring most tokens a second.
int64_t worth_checking(const GuessedSteps& g) {
  double expected = 1.0, chance = 1.0, best = g.least_rate;
  int64_t checked = 0;
  for (int64_t i = 0; i < g.drafted && i + 2 <= g.most_rows; ++i) {
    chance *= rate_of(*g.guess, i, g.sureness[i]);
    if (chance < g.least_chance) break;
    expected += chance;
    const double rate = expected / g.costs[i + 2];
    if (rate > best) best = rate, checked = i + 1;
  }
  return checked;
}

// Guesses at what follows `made` tokens, the last of them drawn from row `right`.
int32_t guess_anew(GuessedSteps* g, int64_t right, int64_t useful, double* further, int32_t threads) {
  Guess guess = *g->guess;
  const int64_t first = g->first + g->made - 1, beyond = g->capacity - first - 1;
  const int64_t room = beyond < 0 ? 0 : at_most(at_most(useful - 1, guess.depth - 1), beyond);
  guess.places.first = &first;
  guess.room = &room;
  guess.hidden = g->ahead + right * guess.head->k;
  guess.logits = g->logits;
  guess.noise = g->noise + g->made;
  guess.tokens = g->draft;
  guess.sureness = g->sureness;
  if (int32_t status = mull_guess(&guess, threads)) return status;
  g->drafted = guess.passes;
  *further = guess.further_seconds;
  return kOk;
}

}  // namespace

MULL_EXPORT int32_t mull_guessed_steps(GuessedSteps* wanted, int32_t threads) {
  GuessedSteps& g = *wanted;
  const Linear& head = *g.guess->head;
  const int64_t depth = g.guess->depth;
  Step step = g.step;
  int64_t checked = g.checked;
  bool goes_on = true;
  g.made = g.steps_made = 0;
  do {
    const int64_t rows = 1 + checked, told = g.steps_made;
    double* seconds = g.seconds + 4 * told;
    const double start = seconds_now();
    int64_t* drawn = g.tokens + g.made + 1;
    g.ids[0] = g.tokens[g.made];
    for (int64_t i = 0; i < checked; ++i) g.ids[1 + i] = g.draft[i];
    place_together(g, g.first + g.made, rows, &step);
    if (int32_t status = mull_latent_stack(g.stack, &step, g.hidden, threads)) return status;
    if (int32_t status = mull_linear(&head, g.hidden, rows, g.logits, threads)) return status;
    const Draw draw{g.logits,  g.inverse_temperature,
                    g.noise + g.made,
                    g.top_k,   g.top_p,
                    g.min_p,   drawn,
                    nullptr,   g.logprobs ? g.logprobs + g.made : nullptr,
                    g.logprob_scale,
                    rows,      g.vocabulary,
                    head.n};
    if (int32_t status = mull_draw(&draw, threads)) return status;
    if (drawn[0] < 0) {  // damage; after other tokens it shows again in the next call
      if (g.made == 0) g.made = 1;
      return kOk;
    }
    int64_t right = 0;
    while (right < checked && drawn[right] == g.draft[right] && !is_an_end(g, drawn[right]) &&
           drawn[right + 1] >= 0)
      ++right;
    for (int64_t i = 0; i < depth; ++i) {
      g.guessed[told * depth + i] = i < g.drafted ? g.draft[i] : -1;
      g.sure[told * depth + i] = g.sureness[i];
    }
    g.counts[3 * told] = g.drafted;
    g.counts[3 * told + 1] = rows;
    g.counts[3 * told + 2] = right + 1;
    seconds[0] = seconds_now() - start;
    for (int64_t i = 0; i <= right; ++i) g.ids[i] = drawn[i];
    Step keys = step;
    place_together(g, g.first + g.made, right + 1, &keys);
    keys.key_cache = g.guess->step.key_cache;
    if (int32_t status = mull_next_token(g.guess->module, &keys, g.hidden, g.ahead, threads))
      return status;
    seconds[1] = seconds_now() - start - seconds[0];
    g.made += right + 1;
    ++g.steps_made;
    g.drafted = 0;
    seconds[3] = 0.0;
    const bool has_ended = is_an_end(g, drawn[right]);
    const int64_t useful = g.left - g.made - 1;  // guesses in the next step
    if (!has_ended && useful > 0)
      if (int32_t status = guess_anew(&g, right, useful, seconds + 3, threads)) return status;
    seconds[2] = seconds_now() - start - seconds[0] - seconds[1];
    checked = at_most(worth_checking(g), at_most(useful, g.most - g.made - 1));
    checked = at_most(checked, g.capacity - g.first - g.made - 1);
    goes_on = !has_ended && g.made < g.most && g.steps_made < g.steps &&
              !__atomic_load_n(g.interrupt, __ATOMIC_RELAXED);
  } while (goes_on);
  return kOk;
}
