// The memory of one call, and the pieces it is handed out in.

// Each piece begins at a multiple of 64 bytes. With base null it is only counted what all need.
// In a sanitised build what lies between two pieces may not be touched.
struct Arena {
  char* base;
  int64_t used;

  template <class T>
  T* take(int64_t count) {
    char* from = base ? base + used : nullptr;
    const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
    used += round_up(bytes, 64);
#if defined(__SANITIZE_ADDRESS__)
    used += 64;
    if (base && count) __asan_poison_memory_region(from + bytes, base + used - (from + bytes));
#endif
    return reinterpret_cast<T*>(from);
  }
};
