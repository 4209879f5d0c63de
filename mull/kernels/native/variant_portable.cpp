// Any processor: vectors of 16 bytes, which every 64-bit x86 (SSE2) and ARM (NEON) has.
#define MULL_VARIANT portable
#define MULL_VECTOR_BYTES 16
#include "variant.h"
