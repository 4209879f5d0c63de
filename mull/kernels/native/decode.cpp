// Several decode steps in one call: what the engine does in Python between two steps, and with cold
// caches, takes as long as a tenth of a small model's step (engine/decode_loop.py says when).
#include "abi.h"

void place_rows(const Places& places, int64_t rows, int64_t passes, Step* step) {
  Paging& paging = step->paging;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t at = places.first[r] + passes, index = at / paging.block_size;
    const int32_t block = index < paging.blocks_per_sequence  // else the step finds the slot wrong
                              ? paging.block_table[r * paging.blocks_per_sequence + index]
                              : -1;
    places.positions[r] = at;
    places.slots[r] = static_cast<int32_t>(block * paging.block_size + at % paging.block_size);
    places.context[r] = static_cast<int32_t>(at + 1);
    places.query_starts[r] = static_cast<int32_t>(r);
  }
  places.query_starts[rows] = static_cast<int32_t>(rows);
  step->rows = paging.sequences = rows;
  step->slots = places.slots;
  step->positions = places.positions;
  paging.context = places.context;
  paging.query_starts = places.query_starts;
}

namespace {

bool is_end(const Decode& d, int64_t row, int64_t token) {
  const int64_t* ends = d.ends + row * d.ends_each;
  for (int64_t i = 0; i < d.ends_each; ++i)
    if (ends[i] == token) return true;
  return false;
}

// Whether row r has drawn one of its ends in the first `steps` steps.
bool has_ended(const Decode& d, int64_t row, int64_t steps) {
  for (int64_t i = 1; i <= steps; ++i)
    if (is_end(d, row, d.tokens[i * d.rows + row])) return true;
  return false;
}

// After `d.made` steps, the last of which went well.
bool goes_on(const Decode& d) {
  if (__atomic_load_n(d.interrupt, __ATOMIC_RELAXED)) return false;
  int64_t ended = 0;
  for (int64_t r = 0; r < d.rows; ++r) {
    if (d.tokens[d.made * d.rows + r] < 0) return false;
    ended += has_ended(d, r, d.made);
  }
  return ended <= d.most_ended && ended < d.rows;
}

}  // namespace

MULL_EXPORT int32_t mull_decode(Decode* decode, int32_t threads) {
  Decode& d = *decode;
  Step step = d.step;
  d.made = 0;
  do {
    const int64_t at = d.made * d.rows;
    place_rows(d.places, d.rows, d.made, &step);
    step.ids = d.tokens + at;
    float* hidden = d.hidden + at * d.head->k;
    const int32_t status = d.stack ? mull_stack(d.stack, &step, hidden, threads)
                                   : mull_latent_stack(d.latent_stack, &step, hidden, threads);
    if (status) return status;
    if (int32_t failed = mull_linear(d.head, hidden, d.rows, d.logits, threads)) return failed;
    const Draw draw{d.logits,
                    d.inverse_temperature,
                    d.noise + at,
                    d.top_k,
                    d.top_p,
                    d.min_p,
                    d.tokens + at + d.rows,
                    nullptr,
                    d.logprobs ? d.logprobs + at : nullptr,
                    d.logprob_scale,
                    d.rows,
                    d.vocabulary,
                    d.head->n};
    if (int32_t failed = mull_draw(&draw, threads)) return failed;
    ++d.made;
  } while (d.made < d.steps && goes_on(d));
  return kOk;
}
