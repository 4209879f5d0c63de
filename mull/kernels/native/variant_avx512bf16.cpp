// Compiled with the flags of avx512vnni and -mavx512bf16: bfloat16 products two at a time.
#define MULL_VARIANT avx512bf16
#define MULL_VECTOR_BYTES 64
#define MULL_HAS_DPBF16
#include "variant.h"
