// Everything that is compiled once per instruction set. The including file sets MULL_VARIANT,
// MULL_VECTOR_BYTES and, where the processor multiplies bfloat16 pairs, MULL_HAS_DPBF16.
#include "abi.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace MULL_VARIANT {
namespace {
#include "simd.h"

#include "quantised.h"

#include "linear.h"

#include "int8_cache.h"

#include "arena.h"

#include "attention_parts.h"

#include "attention_float.h"

#include "attention_int8.h"

#include "attention_latents.h"

#include "attention.h"

#include "layer.h"

#include "router.h"

#include "moe.h"

#include "latent.h"

#include "latent_stack.h"

#include "next_token.h"

#include "draw_kept.h"

#include "draw.h"

#include "training_rows.h"

#include "training_attention.h"

#include "training_tokens.h"

#include "peak.h"
}  // namespace
}  // namespace MULL_VARIANT

#define MULL_NAME_2(variant) #variant
#define MULL_NAME(variant) MULL_NAME_2(variant)
#define MULL_TABLE_2(variant) variant##_variant
#define MULL_TABLE(variant) MULL_TABLE_2(variant)

const Variant* MULL_TABLE(MULL_VARIANT)() {
  using namespace MULL_VARIANT;
  static const Variant table = {
      MULL_NAME(MULL_VARIANT), linear_scratch, linear_team,      attention_scratch, attention_team,
      write_int8,              stack_scratch,  stack_team,       attention_inputs,  attention_outputs,
      latent_scratch,          latent_team,    next_token_scratch, next_token_team, draw_scratch,      draw_team,
      norm_scratch,   norm_team,   gated_team,       summed_team,       dealt_team,
      short_attention_scratch, short_attention_team, tokens_team,     multiply_whole_numbers,
  };
  return &table;
}
