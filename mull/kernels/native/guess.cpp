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
