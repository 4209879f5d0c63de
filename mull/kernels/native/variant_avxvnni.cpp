// Compiled with the flags of avx2 and -mavxvnni: dot products of bytes in one instruction.
#define MULL_VARIANT avxvnni
#define MULL_VECTOR_BYTES 32
#include "variant.h"
