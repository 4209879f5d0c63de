// The memory a native call works in beside what it was given.
#pragma once
#include <stddef.h>
#include <stdlib.h>

// More than this is given back at once: a call that needs it takes longer than fresh pages do.
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kMostKept = 0;  // every call's memory ends where it asked for
#else
constexpr size_t kMostKept = 64 << 20;
#endif

// Memory of one call. The last call's is kept for the next: fresh pages cost as much as a layer.
class Scratch {
 public:
  explicit Scratch(size_t bytes) : size_((bytes + 127) / 64 * 64) {
    kept_ = __atomic_exchange_n(&g_kept, nullptr, __ATOMIC_ACQ_REL);
    if (kept_ && kept_->size >= size_) return;
    release(kept_);
    kept_ = static_cast<Kept*>(aligned_alloc(64, sizeof(Kept) + size_));
    if (kept_) kept_->size = size_;
  }
  ~Scratch() {
    if (kept_ && kept_->size <= kMostKept)
      release(__atomic_exchange_n(&g_kept, kept_, __ATOMIC_ACQ_REL));
    else
      release(kept_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  char* get() const { return kept_ ? reinterpret_cast<char*>(kept_ + 1) : nullptr; }

 private:
  struct alignas(64) Kept {
    size_t size;
  };
  static void release(Kept* kept) { free(kept); }
  static Kept* g_kept;
  Kept* kept_;
  size_t size_;
};
