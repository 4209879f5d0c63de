// What Python calls. Holds the two things a process has one of: the variant in use, and the
// entry points of the OpenMP runtime that torch already runs (two thread pools spinning beside
// each other on the same cores would be many times slower than one).
#include <stdlib.h>
#include <string.h>

#include "abi.h"

namespace {

using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
using Wait = void (*)();
using Number = int (*)();

Parallel g_parallel = nullptr;
Wait g_wait = nullptr;
Number g_thread_number = nullptr;
Number g_team_size = nullptr;
const Variant* g_variant = nullptr;

#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

// The named variant, or the fastest; null where this processor lacks it.
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
  if (wanted("avx512") && has_avx512()) return avx512_variant();
  if (wanted("avx2") && has_avx2()) return avx2_variant();
#endif
  return wanted("portable") ? portable_variant() : nullptr;
}

template <class Work>
void run_team(int threads, const Work& work) {
  if (threads <= 1 || !g_parallel) {
    work(Team{0, 1, nullptr});
    return;
  }
  auto member = [](void* data) {
    (*static_cast<const Work*>(data))(Team{g_thread_number(), g_team_size(), g_wait});
  };
  g_parallel(member, const_cast<Work*>(&work), static_cast<unsigned>(threads), 0);
}

class Scratch {
 public:
  explicit Scratch(size_t bytes)
      : base_(static_cast<char*>(aligned_alloc(64, (bytes + 127) / 64 * 64))) {}
  ~Scratch() { free(base_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  char* get() const { return base_; }

 private:
  char* base_;
};

// Block numbers come from the caller: a wrong one must not become a wild read.
int32_t check_paging(const Paging& p, int64_t rows) {
  if (p.sequences > 0 && (p.query_starts[0] != 0 || p.query_starts[p.sequences] != rows))
    return kBadBlock;
  for (int64_t b = 0; b < p.sequences; ++b) {
    const int64_t n = p.query_starts[b + 1] - p.query_starts[b];
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

uint16_t narrow(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if (x != x) return static_cast<uint16_t>((bits | 0x400000u) >> 16);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace

#define MULL_EXPORT extern "C" __attribute__((visibility("default")))

MULL_EXPORT void mull_sizes(int64_t* sizes) {
  const size_t all[] = {sizeof(Linear), sizeof(Layer), sizeof(Paging),
                        sizeof(Stack),  sizeof(Step),  sizeof(Attention),
                        sizeof(Routing), sizeof(LatentLayer), sizeof(LatentStack)};
  for (int i = 0; i < 9; ++i) sizes[i] = static_cast<int64_t>(all[i]);
}

MULL_EXPORT void mull_set_runtime(Parallel parallel, Wait wait, Number thread_number,
                                  Number team_size) {
  g_parallel = parallel;
  g_wait = wait;
  g_thread_number = thread_number;
  g_team_size = team_size;
}

// Chooses a variant (null: the best); 0 where this processor lacks it.
MULL_EXPORT int32_t mull_select(const char* name) {
  const Variant* variant = find_variant(name);
  if (variant) g_variant = variant;
  return variant != nullptr;
}

MULL_EXPORT int32_t mull_supports(const char* name) { return find_variant(name) != nullptr; }

MULL_EXPORT const char* mull_selected() { return g_variant->name; }

// Row-major weights [n, k] of the linear's kind into panels, see Linear.
MULL_EXPORT void mull_pack(const Linear* linear, const void* weights, void* packed, int32_t threads) {
  const int64_t n = linear->n, k = linear->k, panels = (n + 15) / 16;
  run_team(threads, [&](const Team& team) {
    for (int64_t p = team.first(panels); p < team.last(panels); ++p)
      for (int64_t lane = 0; lane < 16; ++lane) {
        const int64_t row = p * 16 + lane;
        if (linear->kind == kFloat32) {
          float* to = static_cast<float*>(packed) + p * k * 16 + lane;
          const float* from = static_cast<const float*>(weights) + row * k;
          for (int64_t i = 0; i < k; ++i) to[i * 16] = row < n ? from[i] : 0.0f;
        } else {
          const int64_t pairs = (k + 1) / 2;
          uint16_t* to = static_cast<uint16_t*>(packed) + p * pairs * 32 + lane * 2;
          const uint16_t* from = static_cast<const uint16_t*>(weights) + row * k;
          for (int64_t i = 0; i < 2 * pairs; ++i)
            to[i / 2 * 32 + i % 2] = row < n && i < k ? from[i] : uint16_t{0};
        }
      }
  });
}

// Rows `ids` (checked by the caller) of the packed weights as float32 [count, k].
MULL_EXPORT void mull_rows(const Linear* linear, const int64_t* ids, int64_t count, float* out) {
  const int64_t k = linear->k, pairs = (k + 1) / 2;
  for (int64_t r = 0; r < count; ++r) {
    const int64_t panel = ids[r] / 16, lane = ids[r] % 16;
    float* to = out + r * k;
    if (linear->kind == kFloat32) {
      const float* from = static_cast<const float*>(linear->packed) + panel * k * 16 + lane;
      for (int64_t i = 0; i < k; ++i) to[i] = from[i * 16];
    } else {
      const uint16_t* from = static_cast<const uint16_t*>(linear->packed) + panel * pairs * 32 + lane * 2;
      for (int64_t i = 0; i < k; ++i) {
        const uint32_t bits = static_cast<uint32_t>(from[i / 2 * 32 + i % 2]) << 16;
        memcpy(to + i, &bits, 4);
      }
    }
  }
}

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

// All layers and the final norm, x [rows, hidden] in place.
MULL_EXPORT int32_t mull_stack(const Stack* stack, const Step* step, float* x, int32_t threads) {
  if (step->rows == 0) return kOk;
  const Paging& paging = step->paging;
  if (int32_t status = check_paging(paging, step->rows)) return status;
  if (int32_t status = check_slots(step->slots, step->rows, paging.num_blocks * paging.block_size))
    return status;
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
  const Paging& paging = step->paging;
  if (int32_t status = check_paging(paging, step->rows)) return status;
  if (int32_t status = check_slots(step->slots, step->rows, paging.num_blocks * paging.block_size))
    return status;
  Scratch scratch(g_variant->latent_scratch(stack, step, threads));
  if (!scratch.get()) return kNoMemory;
  run_team(threads, [&](const Team& team) {
    g_variant->latent_stack(stack, step, x, scratch.get(), team);
  });
  return kOk;
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
