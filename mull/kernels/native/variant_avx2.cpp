// Compiled with -mavx2 -mfma -mf16c.
#define MULL_VARIANT avx2
#define MULL_VECTOR_BYTES 32
#include "variant.h"
