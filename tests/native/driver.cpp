// Calls functions of the native library for another process, with which it shares one piece of
// memory at one address, so that pointers mean the same in both (see tests/elsewhere.py).
// driver LIBRARY MEMORY_FILE ADDRESS BYTES; a Request on stdin, its result on stdout.
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

extern "C" {
void GOMP_parallel(void (*)(void*), void*, unsigned, unsigned);
int omp_get_thread_num();
int omp_get_num_threads();
}

struct Request {
  char name[32];
  int64_t arguments[8];
};

using Function = int64_t (*)(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);

static int fail(const char* what) {
  fprintf(stderr, "driver: %s\n", what);
  return 1;
}

int main(int count, char** values) {
  if (count != 5) return fail("four arguments, please");
  void* library = dlopen(values[1], RTLD_NOW);
  if (!library) return fail(dlerror());
  void* address = reinterpret_cast<void*>(strtoull(values[3], nullptr, 10));
  const int file = open(values[2], O_RDWR);
  if (mmap(address, strtoull(values[4], nullptr, 10), PROT_READ | PROT_WRITE,
           MAP_SHARED | MAP_FIXED_NOREPLACE, file, 0) != address)
    return fail("the shared memory does not fit where it should be");
  using SetRuntime = void (*)(void*, void*, void*);
  reinterpret_cast<SetRuntime>(dlsym(library, "mull_set_runtime"))(
      reinterpret_cast<void*>(GOMP_parallel), reinterpret_cast<void*>(omp_get_thread_num),
      reinterpret_cast<void*>(omp_get_num_threads));
  Request request;
  while (fread(&request, sizeof request, 1, stdin) == 1) {
    const Function function = reinterpret_cast<Function>(dlsym(library, request.name));
    if (!function) return fail(dlerror());
    const int64_t* a = request.arguments;
    const int64_t result = function(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]);
    fwrite(&result, sizeof result, 1, stdout);
    fflush(stdout);
  }
  return 0;
}
