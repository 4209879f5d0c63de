// The plain C interface between Python (ctypes) and the native kernels, and the table of
// instruction-set variants behind it. Every struct is mirrored in mull/kernels/structs.py.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "training.h"

#define MULL_EXPORT extern "C" __attribute__((visibility("default")))

enum Kind : int32_t { kFloat32 = 0, kBFloat16 = 1, kQ8 = 2, kQ4 = 3 };

enum Status : int32_t { kOk = 0, kNoMemory = 1, kBadBlock = 2, kBadSlot = 3, kBadToken = 4, kBadRow = 5 };

// Weights [n, k] in panels of 16 outputs; outputs and inputs beyond n and k are zeros.
// float32: [panel][k][16]; bfloat16: [panel][k/2][16][2].
// q8, for every panel and pair of groups of 32 inputs: float16 scales [2][16], then unsigned bytes
// [2][8 quads of inputs][16][4] with zero point 128.
// q4 likewise: float16 scales [2][16], float16 minimums [2][16], then bytes [8 quads][16][4] whose
// low nibbles are the first group's and whose high nibbles the second's; scale * nibble + minimum.
struct Linear {
  const void* packed;
  const float* bias;  // [n] or null
  int64_t n;
  int64_t k;
  int32_t kind;
  int32_t unused;
};

// One decoder layer: grouped-query attention and a dense gated MLP.
struct Layer {
  const float* input_norm;
  const float* post_norm;
  const float* q_norm;  // [head_dim] or null
  const float* k_norm;
  Linear qkv;  // q, k and v rows after each other
  Linear out;
  Linear gate;
  Linear up;
  Linear down;
};

// Which cached rows each new token may see (see paged_attention in reference.py).
struct Paging {
  const int32_t* block_table;  // [sequences, blocks_per_sequence]
  const int32_t* query_starts;  // [sequences + 1]
  const int32_t* context;      // [sequences], new tokens included
  int64_t sequences;
  int64_t blocks_per_sequence;
  int64_t num_blocks;
  int64_t block_size;
};

struct Stack {
  const Layer* layers;
  const float* final_norm;  // null: none
  int64_t num_layers;
  int64_t hidden;
  int64_t heads;
  int64_t kv_heads;
  int64_t head_dim;
  float eps;
  float scale;
};

// What a cache holds. float32 and bfloat16: [num_blocks, block_size, kv_heads, width]. int8: see
// int8_cache.h.
enum CacheKind : int32_t { kCacheFloat32 = 0, kCacheBFloat16 = 1, kCacheInt8 = 2 };

// What the rows of an int8 cache are; each has a layout of its own.
enum CacheRole : int32_t { kKeys = 0, kValues = 1, kLatents = 2 };

// One forward pass of `rows` tokens, its keys and values written to key_cache[layer] and
// value_cache[layer]. Row r is token ids[r]; its angles are row positions[r] of cos and sin, without
// positions row r.
struct Step {
  const int64_t* ids;
  const Linear* embedding;
  const float* cos;  // [.., rotated width / 2]
  const float* sin;
  const int64_t* positions;
  const int32_t* slots;  // [rows]
  void* const* key_cache;
  void* const* value_cache;
  Paging paging;
  int64_t rows;
  int32_t cache_kind;
  int32_t unused;
};

// How a token's experts are chosen (model/moe.py).
enum Scoring : int32_t { kSoftmax = 0, kSigmoid = 1 };
enum GroupRule : int32_t { kNoGroups = 0, kBestOfGroup = 1, kTwoBestOfGroup = 2 };

struct Routing {
  int64_t experts;
  int64_t chosen;
  int64_t groups;
  int64_t kept_groups;
  int32_t scoring;
  int32_t group_rule;
  int32_t normalise;
  float scaling;
};

// One decoder layer: multi-head latent attention, then a dense gated MLP, or experts (router.n > 0)
// and, where down.n > 0, a shared one. n = 0: the layer has no such part.
struct LatentLayer {
  const float* input_norm;
  const float* post_norm;
  const float* q_norm;       // [query latent] or null
  const float* latent_norm;  // [latent]
  Linear entry;     // rows of the queries, or of their latent; of the latent; of the roped key
  Linear q;         // from the query latent to the queries
  Linear up_key;    // per head round_up(latent, 16) outputs of nope inputs
  Linear up_value;  // per head round_up(value, 16) outputs of latent inputs
  Linear out;
  Linear gate;
  Linear up;
  Linear down;
  Linear router;                // float32 [experts, hidden]
  const float* selection_bias;  // [experts] or null
  Linear expert_gate_up;  // per expert the gate's, then up's outputs, each padded to a multiple of 32
  Linear expert_down;     // per expert round_up(hidden, 16) outputs, inputs padded as those
};

struct LatentStack {
  const LatentLayer* layers;
  const float* final_norm;  // null: none
  int64_t num_layers;
  int64_t hidden;
  int64_t heads;
  int64_t latent;
  int64_t nope;
  int64_t rope;
  int64_t value;
  Routing routing;
  float eps;
  float scale;
  int32_t interleaved;
  int32_t unused;
};

// Multi-token prediction (model/mtp.py): norms of the next token's row and of the hidden state,
// `join` [hidden, 2 hidden], then one layer.
struct NextToken {
  const float* token_norm;
  const float* hidden_norm;
  Linear join;
  LatentStack stack;
};

// One token for each row of logits [rows, vocabulary], rows `stride` floats apart.
struct Draw {
  const float* logits;
  const float* inverse_temperature;  // [rows]; 0: the likeliest token
  const double* noise;               // [rows], in [0, 1)
  const int64_t* top_k;              // [rows], or null: no row has filters, see draw_kept.h
  const double* top_p;
  const float* min_p;
  int64_t* tokens;                   // [rows]; -1 where a logit is no finite number
  float* sureness;                   // [rows] or null: the likeliest token's probability
  float* logprobs;                   // [rows] or null: of the drawn token,
  const float* logprob_scale;        // [rows]: under softmax(logits * this)
  int64_t rows;
  int64_t vocabulary;
  int64_t stride;
};

// Where tokens that follow on each other go: those of row r to positions first[r] and following.
struct Places {
  const int64_t* first;  // [rows]
  int64_t* positions;    // [rows] of memory, as the others
  int32_t* slots;
  int32_t* context;
  int32_t* query_starts;  // [rows + 1]
};

// Several decode steps of `rows` sequences of a stack's tokens, each drawn from the one before.
struct Decode {
  const Stack* stack;              // this or the next one, the other null
  const LatentStack* latent_stack;
  const Linear* head;
  Step step;      // all but tokens and places: those are set for every step
  Places places;
  float* hidden;  // [steps, rows, head.k]: what the stack gave in every step
  float* logits;  // [rows, head.n] of memory
  const float* inverse_temperature;  // [rows], see Draw
  const double* noise;               // [steps, rows]
  const int64_t* top_k;              // [rows] or null, as the next two
  const double* top_p;
  const float* min_p;
  const float* logprob_scale;        // [rows], see Draw
  const int64_t* ends;   // [rows, ends_each]: tokens after which a row is not wanted
  int64_t* tokens;       // [steps + 1, rows]: the first row is given; -1 see Draw
  float* logprobs;       // [steps, rows] or null
  const int32_t* interrupt;  // not 0: this step is the last one
  int64_t rows;
  int64_t vocabulary;
  int64_t ends_each;
  int64_t steps;
  int64_t most_ended;  // rows; once more have ended, this step is the last one
  int64_t made;        // steps
};

// Guesses for `rows` sequences, each building on the one before, as many as bring most tokens a second:
// `depth` at most. Tables of guesses are [depth, rows].
struct Guess {
  const NextToken* module;
  const Linear* head;
  Step step;             // all but tokens and places: those are set for every guess
  Places places;         // row r's first guess is of the token after position first[r]
  float* hidden;         // [rows, hidden]: the module's output after that position; overwritten
  float* logits;         // [rows, head.n]
  const int64_t* room;   // [rows], falling: guesses after the first that there is a place for
  const float* inverse_temperature;  // [rows], see Draw
  const double* noise;               // [depth, rows]
  const double* rates;   // [rated_depths, surenesses]: how often guesses of such kinds come true
  const double* means;   // [depth + 1]: and those of such a depth
  const double* costs;   // [depth + 2]: of a step that checks so many guesses of each row
  int64_t* tokens;       // [depth, rows]; -1: none
  float* sureness;       // [depth, rows]
  double* chances;       // [rows] of memory
  int64_t rows;
  int64_t vocabulary;
  int64_t surenesses;
  int64_t rated_depths;
  int64_t depth;
  int64_t least_depth;     // guessed whether it pays or not
  int64_t passes;          // made
  double expected;         // tokens of the step that checks them, without any
  double further_seconds;  // that all passes but the first took
};

// Several steps of one sequence. Each checks what multi-token prediction guessed after the one before,
// and guesses anew. `depth` is guess->depth.
struct GuessedSteps {
  const LatentStack* stack;
  Step step;            // all but the rows: those are set for every step
  const Guess* guess;   // of one row: all but first, room, hidden, noise and what it says
  int64_t* ids;         // [most_rows] of memory, as the next two
  int64_t* positions;
  int32_t* slots;
  int32_t* bounds;      // [3] of memory
  float* hidden;        // [most_rows, head.k] of memory, as the next one
  float* ahead;
  float* logits;        // [most_rows, head.n] of memory
  const float* inverse_temperature;  // [most_rows], see Draw, as the next four
  const int64_t* top_k;
  const double* top_p;
  const float* min_p;
  const float* logprob_scale;
  const double* noise;  // [most + depth]: for one token after the other
  const double* costs;  // [most_rows + 1]: of a step by its rows
  const int64_t* ends;  // [ends_each]: tokens after which there is nothing to say
  int64_t* draft;       // [depth]: guesses at the first step's tokens; at the end those at the next
  float* sureness;      // [depth]: of the draft
  int64_t* tokens;      // [most + 1]: the first one is given; -1 see Draw
  float* logprobs;      // [most] or null
  int64_t* guessed;     // [steps, depth]: the draft of every step
  float* sure;          // [steps, depth]
  int64_t* counts;      // [steps, 3]: guesses drafted, rows computed, tokens won
  double* seconds;      // [steps, 4]: of the step, the module's keys, guesses, and all but the first
  const int32_t* interrupt;  // not 0: this step is the last one
  double least_chance;  // of a guess that is checked
  double least_rate;    // tokens by cost that a step with guesses must promise
  int64_t vocabulary;
  int64_t ends_each;
  int64_t most_rows;
  int64_t most;         // tokens of this call
  int64_t left;         // tokens the sequence may have altogether
  int64_t steps;
  int64_t first;        // position of tokens[0]
  int64_t capacity;     // positions that its blocks have
  int64_t drafted;      // guesses in draft
  int64_t checked;      // of these in the first step
  int64_t made;         // tokens
  int64_t steps_made;
};

struct Attention {
  const float* q;  // [rows, heads, key_dim], row stride q_stride floats
  const void* key;
  const void* value;
  void* out;  // [rows, heads, value_dim]
  Paging paging;
  int64_t rows;
  int64_t q_stride;
  int64_t out_stride;  // elements
  int64_t heads;
  int64_t kv_heads;
  int64_t key_dim;
  int64_t value_dim;
  int64_t key_token_stride;  // elements from one slot to the next
  int64_t key_head_stride;
  int64_t value_token_stride;
  int64_t value_head_stride;
  float scale;
  int32_t cache_kind;
  int32_t out_form;  // Form, see simd.h
  int32_t is_latent;  // int8: key and value are one cache of latents
};

// Rows [count, heads, width] to be quantised into an int8 cache. Of a latent the first value_width
// numbers are the value.
struct CacheRows {
  void* cache;
  const float* rows;
  const int32_t* slots;  // [count]
  int64_t count;
  int64_t num_slots;
  int64_t block_size;
  int64_t heads;
  int64_t width;
  int64_t value_width;
  int32_t role;
  int32_t unused;
};

// Where a team meets. Threads spin: a phase of a decode step is shorter than a trip to the kernel
// and back. One that waits long (the core of another is taken by some other program) sleeps, so
// that the one it waits for can have this core.
struct Meeting {
  int32_t arrived;
  int32_t round;
  int32_t sleepers;
  char apart[52];  // from what lies beside it
};
constexpr int kMeetingSpins = 2000;  // some 0.1 ms

// The threads that run one native call together.
struct Team {
  int id;
  int size;
  Meeting* meeting;  // null when alone
  void (*sleep)(Meeting*, int32_t round);  // until that round is over
  void (*wake)(Meeting*);

  // While this thread waits it asks memory for `bytes` bytes of `next`, what it will read after.
  void barrier(const char* next = nullptr, int64_t bytes = 0) const {
    if (size == 1) return;
    const int32_t round = __atomic_load_n(&meeting->round, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&meeting->arrived, 1, __ATOMIC_ACQ_REL) == size) {
      __atomic_store_n(&meeting->arrived, 0, __ATOMIC_RELAXED);
      __atomic_store_n(&meeting->round, round + 1, __ATOMIC_SEQ_CST);
      if (__atomic_load_n(&meeting->sleepers, __ATOMIC_SEQ_CST)) wake(meeting);
      return;
    }
    for (int spins = 0; __atomic_load_n(&meeting->round, __ATOMIC_ACQUIRE) == round; ++spins) {
      if (spins > kMeetingSpins) return sleep(meeting, round);
      if (bytes > 0) {
        __builtin_prefetch(next, 0, 2);
        next += 64, bytes -= 64;
        continue;
      }
#if defined(__x86_64__)
      __builtin_ia32_pause();
#elif defined(__aarch64__)
      __asm__ volatile("yield");
#endif
    }
  }
  int64_t first(int64_t items) const { return items * id / size; }
  int64_t last(int64_t items) const { return items * (id + 1) / size; }
};

// The kernels compiled for one instruction set: bytes of scratch a piece of work needs, then the
// work itself, called by every thread of the team.
struct Variant {
  const char* name;
  size_t (*linear_scratch)(const Linear*, int64_t rows);
  void (*linear)(const Linear*, const float* x, int64_t rows, float* y, char* scratch, const Team&);
  size_t (*attention_scratch)(const Attention*, int threads);
  void (*attention)(const Attention*, int64_t* taken, char* scratch, const Team&);
  void (*write_int8)(const CacheRows*, const Team&);
  size_t (*stack_scratch)(const Stack*, const Step*, int threads);
  void (*stack)(const Stack*, const Step*, float* x, char* scratch, const Team&);
  void (*attention_inputs)(const Stack*, int64_t layer, const Step*, const float* x, float* qkv,
                           char* scratch, const Team&);
  void (*attention_outputs)(const Stack*, int64_t layer, int64_t rows, const float* attended,
                            float* x, char* scratch, const Team&);
  size_t (*latent_scratch)(const LatentStack*, const Step*, int threads);
  void (*latent_stack)(const LatentStack*, const Step*, float* x, char* scratch, const Team&);
  size_t (*next_token_scratch)(const NextToken*, const Step*, int threads);
  void (*next_token)(const NextToken*, const Step*, const float* hidden, const float* embedded,
                     float* x, char* scratch, const Team&);
  size_t (*draw_scratch)(const Draw*, int threads);
  void (*draw)(const Draw*, char* scratch, const Team&);
  size_t (*norm_scratch)(const NormRows*, int threads);
  void (*norm)(const NormRows*, char* scratch, const Team&);
  void (*gated)(const GatedRows*, const Team&);
  void (*summed)(const SummedRows*, const Team&);
  void (*dealt)(const DealtRows*, const Team&);
  size_t (*short_attention_scratch)(const ShortAttention*, int threads);
  void (*short_attention)(const ShortAttention*, int64_t* taken, char* scratch, const Team&);
  void (*tokens)(const TokenRows*, const Team&);
  void (*multiply_whole_numbers)(const void* operands, int64_t operations, const Team&);
};

// The one in use.
const Variant& selected_variant();

// What one native call asks of another.
MULL_EXPORT int32_t mull_linear(const Linear*, const float* x, int64_t rows, float* y,
                                int32_t threads);
MULL_EXPORT int32_t mull_next_token(const NextToken*, const Step*, const float* hidden, float* x,
                                    int32_t threads);
MULL_EXPORT int32_t mull_draw(const Draw*, int32_t threads);

MULL_EXPORT int32_t mull_stack(const Stack*, const Step*, float* x, int32_t threads);
MULL_EXPORT int32_t mull_latent_stack(const LatentStack*, const Step*, float* x, int32_t threads);

// The first `rows` rows of `step` become the tokens `passes` positions after the first ones.
void place_rows(const Places& places, int64_t rows, int64_t passes, Step* step);

// One row of packed weights as float32 [k].
void unpack_row(const Linear& linear, int64_t row, float* to);

const Variant* portable_variant();
#if defined(__x86_64__)
const Variant* avx2_variant();
const Variant* avxvnni_variant();
const Variant* avx512vnni_variant();
const Variant* avx512bf16_variant();
#elif defined(__aarch64__)
const Variant* neon_variant();
#endif
