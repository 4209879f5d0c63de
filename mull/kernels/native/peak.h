// Products of small whole numbers as fast as the processor makes them, with nothing to wait for: the
// peak that shares of it are of.

constexpr int kPeakSums = 12;  // two products begin in a cycle, and each takes up to five
// Two operations for each of four products a lane.
constexpr int64_t kPeakOperations = int64_t{kPeakSums} * W * 4 * 2;

// So many operations in every thread of the team. operands: zeros, [kPeakSums + 1] vectors.
static void multiply_whole_numbers(const void* operands, int64_t operations, const Team&) {
  const char* from = static_cast<const char*>(operands);
  vi sums[kPeakSums]{};
  for (int64_t i = 0; i < operations; i += kPeakOperations) {
    asm volatile("" ::: "memory");  // operands are read again: no product is that of before
    const vi w = load_ints(from + kPeakSums * MULL_VECTOR_BYTES);
#pragma GCC unroll 12
    for (int j = 0; j < kPeakSums; ++j) {
      const vi a = load_ints(from + j * MULL_VECTOR_BYTES);
      sums[j] = kNarrowSums ? add_nibbles_narrow(sums[j], w, a) : dot4_nibbles(sums[j], w, a);
    }
  }
  vi all{};
#pragma GCC unroll 12
  for (int j = 0; j < kPeakSums; ++j) all += sums[j];
  asm volatile("" ::"m"(all));
}
