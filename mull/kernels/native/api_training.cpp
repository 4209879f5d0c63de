// What the training step calls. Rows and places are checked here: a wrong one must not become a wild
// read.
#include "abi.h"
#include "scratch.h"
#include "team.h"

namespace {

// Fewer numbers than this are worked on by the caller's thread: a team meets as long as that takes.
constexpr int64_t kFewNumbers = 1 << 14;

int team_for(int64_t numbers, int32_t threads) { return numbers < kFewNumbers ? 1 : threads; }

bool are_rows_of(const int64_t* places, int64_t count, int64_t rows) {
  for (int64_t i = 0; i < count; ++i)
    if (places[i] < 0 || places[i] >= rows) return false;
  return true;
}

}  // namespace

MULL_EXPORT int32_t mull_norm(const NormRows* norm, int32_t threads) {
  threads = team_for(norm->rows * norm->width, threads);
  const Variant& variant = selected_variant();
  Scratch scratch(variant.norm_scratch(norm, threads));
  if (!scratch.get()) return kNoMemory;
  run_team(threads, [&](const Team& team) { variant.norm(norm, scratch.get(), team); });
  return kOk;
}

MULL_EXPORT int32_t mull_gated(const GatedRows* gated, int32_t threads) {
  run_team(team_for(gated->rows * gated->width, threads),
           [&](const Team& team) { selected_variant().gated(gated, team); });
  return kOk;
}

MULL_EXPORT int32_t mull_summed(const SummedRows* summed, int32_t threads) {
  if (!are_rows_of(summed->places, summed->rows * summed->each, summed->table_rows)) return kBadRow;
  run_team(team_for(summed->rows * summed->width, threads),
           [&](const Team& team) { selected_variant().summed(summed, team); });
  return kOk;
}

MULL_EXPORT int32_t mull_dealt(const DealtRows* dealt, int32_t threads) {
  if (!are_rows_of(dealt->places, dealt->rows, dealt->upstream_rows)) return kBadRow;
  run_team(team_for(dealt->rows * dealt->width, threads),
           [&](const Team& team) { selected_variant().dealt(dealt, team); });
  return kOk;
}

MULL_EXPORT int32_t mull_short_attention(const ShortAttention* attention, int32_t threads) {
  const Variant& variant = selected_variant();
  Scratch scratch(variant.short_attention_scratch(attention, threads));
  if (!scratch.get()) return kNoMemory;
  int64_t taken = 0;
  run_team(threads, [&](const Team& team) {
    variant.short_attention(attention, &taken, scratch.get(), team);
  });
  return kOk;
}

MULL_EXPORT int32_t mull_tokens(const TokenRows* tokens, int32_t threads) {
  if (!are_rows_of(tokens->targets, tokens->rows, tokens->vocabulary)) return kBadToken;
  run_team(team_for(tokens->rows * tokens->vocabulary, threads),
           [&](const Team& team) { selected_variant().tokens(tokens, team); });
  return kOk;
}
