// Compiled with -march=armv8.2-a+dotprod.
#define MULL_VARIANT neon
#define MULL_VECTOR_BYTES 16
#include "variant.h"
