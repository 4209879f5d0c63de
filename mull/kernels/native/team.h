// Runs a piece of work on every thread of a team.
#pragma once
#include <sched.h>
#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "abi.h"

using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
using Number = int (*)();

// Entry points of the OpenMP runtime that torch already runs; null: one thread.
struct Runtime {
  Parallel parallel;
  Number thread_number;
  Number team_size;
};

extern Runtime g_runtime;

// What a thread does that waited long for the others of its team: it sleeps in the kernel until
// the last of them arrives; where there is no futex it yields its core again and again.
inline void sleep_until(Meeting* meeting, int32_t round) {
  __atomic_add_fetch(&meeting->sleepers, 1, __ATOMIC_SEQ_CST);
  while (__atomic_load_n(&meeting->round, __ATOMIC_SEQ_CST) == round) {
#ifdef __linux__
    syscall(SYS_futex, &meeting->round, FUTEX_WAIT_PRIVATE, round, nullptr, nullptr, 0);
#else
    sched_yield();
#endif
  }
  __atomic_sub_fetch(&meeting->sleepers, 1, __ATOMIC_SEQ_CST);
}

inline void wake_all(Meeting* meeting) {
#ifdef __linux__
  syscall(SYS_futex, &meeting->round, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
#else
  static_cast<void>(meeting);
#endif
}

template <class Work>
void run_team(int threads, const Work& work) {
  if (threads <= 1 || !g_runtime.parallel) {
    work(Team{0, 1, nullptr, nullptr, nullptr});
    return;
  }
  struct Shared {
    const Work& work;
    alignas(64) Meeting meeting;
  } shared{work, {}};
  auto member = [](void* data) {
    Shared& all = *static_cast<Shared*>(data);
    all.work(Team{g_runtime.thread_number(), g_runtime.team_size(), &all.meeting,
                  sleep_until, wake_all});
  };
  g_runtime.parallel(member, &shared, static_cast<unsigned>(threads), 0);
}
