// Compiled with -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni.
#define MULL_VARIANT avx512vnni
#define MULL_VECTOR_BYTES 64
#include "variant.h"
