// Compiled with -mavx512f -mavx512bw -mavx512vl -mavx512dq.
#define MULL_VARIANT avx512
#define MULL_VECTOR_BYTES 64
#include "variant.h"
