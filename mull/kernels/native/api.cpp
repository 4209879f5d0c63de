// What Python calls. Holds the two things a process has one of: the variant in use, and the
// entry points of the OpenMP runtime that torch already runs (two thread pools spinning beside
// each other on the same cores would be many times slower than one).
#include <stdlib.h>
#include <string.h>

#include "abi.h"
#include "scratch.h"
#include "team.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__linux__)
#include <sys/auxv.h>
#endif

namespace {

const Variant* g_variant = nullptr;

#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}
// GCC before 13 knows no name for it: CPUID leaf 7.1, EAX bit 4.
bool has_avxvnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 16u);
}
#endif

#if defined(__aarch64__)
bool has_dot_products() {
#if defined(__APPLE__)
  return true;  // every Apple processor that mull runs on
#else
  return getauxval(AT_HWCAP) & (1ul << 20);  // HWCAP_ASIMDDP
#endif
}
#endif

// The named variant, or the fastest; null where this processor, or this build, lacks it.
const Variant* find_variant(const char* name) {
  auto wanted = [&](const char* candidate) { return !name || !strcmp(name, candidate); };
#if defined(__x86_64__)
  __builtin_cpu_init();
#ifdef MULL_WITH_AVX512BF16
  // Intel multiplies bfloat16 pairs at half the rate of float32 (Emerald Rapids: 160 against 280
  // GFLOP/s), AMD Zen 4 at twice the rate.
  const bool pairs_are_fast = name || !__builtin_cpu_is("intel");
  if (wanted("avx512bf16") && pairs_are_fast && has_avx512() &&
      __builtin_cpu_supports("avx512bf16"))
    return avx512bf16_variant();
#endif
#ifdef MULL_WITH_AVX512VNNI
  if (wanted("avx512vnni") && has_avx512()) return avx512vnni_variant();
#endif
#ifdef MULL_WITH_AVXVNNI
  if (wanted("avxvnni") && has_avxvnni()) return avxvnni_variant();
#endif
#ifdef MULL_WITH_AVX2
  if (wanted("avx2") && has_avx2()) return avx2_variant();
#endif
#endif
#ifdef MULL_WITH_NEON
  if (wanted("neon") && has_dot_products()) return neon_variant();
#endif
#ifdef MULL_WITH_PORTABLE
  if (wanted("portable")) return portable_variant();
#endif
  return nullptr;
}

// Block numbers come from the caller: a wrong one must not become a wild read.
int32_t check_paging(const Paging& p, int64_t rows) {
  if (p.sequences > 0 && (p.query_starts[0] != 0 || p.query_starts[p.sequences] != rows))
    return kBadBlock;
  for (int64_t b = 0; b < p.sequences; ++b) {
    const int64_t n = int64_t{p.query_starts[b + 1]} - p.query_starts[b];
    const int64_t blocks = (p.context[b] + p.block_size - 1) / p.block_size;
    if (n < 0 || n > p.context[b] || blocks > p.blocks_per_sequence) return kBadBlock;
    for (int64_t m = 0; m < blocks; ++m) {
      const int32_t block = p.block_table[b * p.blocks_per_sequence + m];
      if (block < 0 || block >= p.num_blocks) return kBadBlock;
    }
  }
  return kOk;
}

int32_t check_slots(const int32_t* slots, int64_t rows, int64_t num_slots) {
  for (int64_t r = 0; r < rows; ++r)
    if (slots[r] < 0 || slots[r] >= num_slots) return kBadSlot;
  return kOk;
}

int32_t check_step(const Step& step) {
  const Paging& paging = step.paging;
  if (int32_t status = check_paging(paging, step.rows)) return status;
  return check_slots(step.slots, step.rows, paging.num_blocks * paging.block_size);
}

int32_t embed(const Step& step, float* x) {
  const Linear& table = *step.embedding;
  for (int64_t r = 0; r < step.rows; ++r) {
    if (step.ids[r] < 0 || step.ids[r] >= table.n) return kBadToken;
    unpack_row(table, step.ids[r], x + r * table.k);
  }
  return kOk;
}

uint16_t narrow(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if (x != x) return static_cast<uint16_t>((bits | 0x400000u) >> 16);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace

Runtime g_runtime;
Scratch::Kept* Scratch::g_kept = nullptr;

const Variant& selected_variant() { return *g_variant; }

MULL_EXPORT void mull_sizes(int64_t* sizes) {
  const size_t all[] = {sizeof(Linear), sizeof(Layer), sizeof(Paging),
                        sizeof(Stack),  sizeof(Step),  sizeof(Attention), sizeof(CacheRows),
                        sizeof(Routing), sizeof(LatentLayer), sizeof(LatentStack),
                        sizeof(NextToken), sizeof(Draw), sizeof(Places), sizeof(Decode), sizeof(Guess), sizeof(GuessedSteps), sizeof(NormRows),
                        sizeof(GatedRows), sizeof(SummedRows), sizeof(DealtRows),
                        sizeof(ShortAttention), sizeof(TokenRows)};
  for (size_t size : all) *sizes++ = static_cast<int64_t>(size);
}

MULL_EXPORT void mull_set_runtime(Parallel parallel, Number thread_number, Number team_size) {
  g_runtime = {parallel, thread_number, team_size};
}

// Chooses a variant (null: the best); 0 where this processor lacks it.
MULL_EXPORT int32_t mull_select(const char* name) {
  const Variant* variant = find_variant(name);
  if (variant) g_variant = variant;
  return variant != nullptr;
}

MULL_EXPORT int32_t mull_supports(const char* name) { return find_variant(name) != nullptr; }

MULL_EXPORT const char* mull_selected() { return g_variant->name; }

MULL_EXPORT int32_t mull_linear(const Linear* linear, const float* x, int64_t rows, float* y,
                                int32_t threads) {
  if (rows == 0) return kOk;
  Scratch scratch(g_variant->linear_scratch(linear, rows));
  if (!scratch.get()) return kNoMemory;
  run_team(threads, [&](const Team& team) {
    g_variant->linear(linear, x, rows, y, scratch.get(), team);
  });
  return kOk;
}

MULL_EXPORT int32_t mull_attention(const Attention* attention, int32_t threads) {
  if (attention->rows == 0) return kOk;
  if (int32_t status = check_paging(attention->paging, attention->rows)) return status;
  Scratch scratch(g_variant->attention_scratch(attention, threads));
  if (!scratch.get()) return kNoMemory;
  int64_t taken = 0;
  run_team(threads, [&](const Team& team) {
    g_variant->attention(attention, &taken, scratch.get(), team);
  });
  return kOk;
}

MULL_EXPORT int32_t mull_write_cache(void* cache, int32_t kind, int64_t num_slots, int64_t width,
                                     const float* values, const int32_t* slots, int64_t rows) {
  if (int32_t status = check_slots(slots, rows, num_slots)) return status;
  for (int64_t r = 0; r < rows; ++r) {
    const float* from = values + r * width;
    if (kind == kFloat32) {
      memcpy(static_cast<float*>(cache) + slots[r] * width, from, width * sizeof(float));
    } else {
      uint16_t* to = static_cast<uint16_t*>(cache) + slots[r] * width;
      for (int64_t i = 0; i < width; ++i) to[i] = narrow(from[i]);
    }
  }
  return kOk;
}

MULL_EXPORT int32_t mull_write_int8(const CacheRows* rows, int32_t threads) {
  if (int32_t status = check_slots(rows->slots, rows->count, rows->num_slots)) return status;
  run_team(threads, [&](const Team& team) { g_variant->write_int8(rows, team); });
  return kOk;
}

// All layers and the final norm, to x [rows, hidden].
MULL_EXPORT int32_t mull_stack(const Stack* stack, const Step* step, float* x, int32_t threads) {
  if (step->rows == 0) return kOk;
  if (int32_t status = check_step(*step)) return status;
  if (int32_t status = embed(*step, x)) return status;
  Scratch scratch(g_variant->stack_scratch(stack, step, threads));
  if (!scratch.get()) return kNoMemory;
  run_team(threads, [&](const Team& team) {
    g_variant->stack(stack, step, x, scratch.get(), team);
  });
  return kOk;
}

// The same for layers of latent attention; step.key_cache[layer] -> [blocks, slots, latent + rope].
MULL_EXPORT int32_t mull_latent_stack(const LatentStack* stack, const Step* step, float* x,
                                      int32_t threads) {
  if (step->rows == 0) return kOk;
  if (int32_t status = check_step(*step)) return status;
  if (int32_t status = embed(*step, x)) return status;
  Scratch scratch(g_variant->latent_scratch(stack, step, threads));
  if (!scratch.get()) return kNoMemory;
  run_team(threads, [&](const Team& team) {
    g_variant->latent_stack(stack, step, x, scratch.get(), team);
  });
  return kOk;
}

// One depth of multi-token prediction over hidden [rows, hidden]; step.ids: the tokens after them.
MULL_EXPORT int32_t mull_next_token(const NextToken* module, const Step* step, const float* hidden,
                                    float* x, int32_t threads) {
  if (step->rows == 0) return kOk;
  if (int32_t status = check_step(*step)) return status;
  const size_t embedded_bytes =
      (static_cast<size_t>(step->rows * module->stack.hidden) * sizeof(float) + 63) / 64 * 64;
  Scratch scratch(embedded_bytes + g_variant->next_token_scratch(module, step, threads));
  if (!scratch.get()) return kNoMemory;
  float* embedded = reinterpret_cast<float*>(scratch.get());
  if (int32_t status = embed(*step, embedded)) return status;
  run_team(threads, [&](const Team& team) {
    g_variant->next_token(module, step, hidden, embedded, x, scratch.get() + embedded_bytes, team);
  });
  return kOk;
}

// Fewer rows than this are drawn by the caller's thread: a team meets as long as that takes.
constexpr int64_t kRowsForATeam = 8;

MULL_EXPORT int32_t mull_draw(const Draw* draw, int32_t threads) {
  if (draw->rows * draw->vocabulary < kRowsForATeam * 4096) threads = 1;
  Scratch scratch(g_variant->draw_scratch(draw, threads));
  if (!scratch.get()) return kNoMemory;
  run_team(threads, [&](const Team& team) { g_variant->draw(draw, scratch.get(), team); });
  return kOk;
}

// So many operations on small whole numbers in every thread, for who measures how long they take.
MULL_EXPORT void mull_multiply_whole_numbers(int64_t operations, int32_t threads) {
  alignas(64) static const char zeros[2048] = {};
  run_team(threads, [&](const Team& team) {
    g_variant->multiply_whole_numbers(zeros, operations, team);
  });
}

// Norm, qkv, query and key norms and rotation of one layer: qkv [rows, (heads + 2 kv_heads) * dim].
MULL_EXPORT int32_t mull_attention_inputs(const Stack* stack, int64_t layer, const Step* step,
                                          const float* x, float* qkv, int32_t threads) {
  if (step->rows == 0) return kOk;
  Scratch scratch(g_variant->stack_scratch(stack, step, threads));
  if (!scratch.get()) return kNoMemory;
  run_team(threads, [&](const Team& team) {
    g_variant->attention_inputs(stack, layer, step, x, qkv, scratch.get(), team);
  });
  return kOk;
}

// Output product, MLP and both residuals of one layer, x in place.
MULL_EXPORT int32_t mull_attention_outputs(const Stack* stack, int64_t layer, const Step* step,
                                           const float* attended, float* x, int32_t threads) {
  if (step->rows == 0) return kOk;
  Scratch scratch(g_variant->stack_scratch(stack, step, threads));
  if (!scratch.get()) return kNoMemory;
  run_team(threads, [&](const Team& team) {
    g_variant->attention_outputs(stack, layer, step->rows, attended, x, scratch.get(), team);
  });
  return kOk;
}
