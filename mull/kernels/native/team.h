// Runs a piece of work on every thread of a team.
#pragma once
#include <sched.h>

#include "abi.h"

#define MULL_EXPORT extern "C" __attribute__((visibility("default")))

using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
using Number = int (*)();

// Entry points of the OpenMP runtime that torch already runs; null: one thread.
struct Runtime {
  Parallel parallel;
  Number thread_number;
  Number team_size;
};

extern Runtime g_runtime;

template <class Work>
void run_team(int threads, const Work& work) {
  if (threads <= 1 || !g_runtime.parallel) {
    work(Team{0, 1, nullptr, nullptr});
    return;
  }
  struct Shared {
    const Work& work;
    alignas(64) Meeting meeting;
  } shared{work, {}};
  auto member = [](void* data) {
    Shared& all = *static_cast<Shared*>(data);
    all.work(Team{g_runtime.thread_number(), g_runtime.team_size(), &all.meeting,
                  [] { sched_yield(); }});
  };
  g_runtime.parallel(member, &shared, static_cast<unsigned>(threads), 0);
}
