// Threads that share the work of one caller, a piece at a time.
//
// A decoding step runs some 150 short pieces of parallel work, one after the other. With a barrier after each, as
// OpenMP has, every thread must get a processor 150 times: beside one other busy process a step took eight times as
// long. Here nobody waits for threads, only for work: who is free claims the next chunk, and a thread that comes too
// late finds nothing left.
#pragma once

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

class Team {
 public:
  // `threads` counts the caller. `prepare` is called once in each of the others.
  Team(int threads, void (*prepare)()) {
    for (int i = 1; i < threads; i++) others_.emplace_back([this, prepare] { prepare(); help(); });
  }

  ~Team() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& other : others_) other.join();
  }

  int64_t size() const { return (int64_t)others_.size() + 1; }

  // f(0) to f(chunks - 1), each once, by whoever is free; returns when all are done. One caller at a time.
  template <class F>
  void run(int64_t chunks, const F& f) {
    if (chunks <= 1 || others_.empty()) {
      for (int64_t i = 0; i < chunks; i++) f(i);
      return;
    }
    const int64_t each = (chunks + MOST - 1) / MOST;  // one, or there are more chunks than a claim can count
    share((chunks + each - 1) / each, [&](int64_t i) {
      for (int64_t j = i * each; j < std::min(chunks, (i + 1) * each); j++) f(j);
    });
  }

 private:
  static constexpr int64_t MOST = 0xffff;
  static constexpr int SPINS = 8192, POLITE = 32;  // pauses before sleep (about half a millisecond), and before others may run

  static void rest(int spins) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
    if (spins % POLITE == 0) sched_yield();
  }

  template <class F>
  void share(int64_t chunks, const F& f) {
    call_.store([](const void* own, int64_t i) { (*(const F*)own)(i); }, std::memory_order_relaxed);
    of_.store(&f, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    const uint32_t job = job_.load(std::memory_order_relaxed) + 1;
    next_.store((uint64_t)job << 32 | (uint64_t)chunks << 16, std::memory_order_release);
    job_.store(job);
    if (sleeping_.load() > 0) {
      { std::lock_guard<std::mutex> lock(mutex_); }  // between its last look and its sleep nobody is missed
      wake_.notify_all();
    }
    take(job);
    for (int spins = 1; done_.load(std::memory_order_acquire) < chunks; spins++) rest(spins);
  }

  // Claims chunks of this job while it has any. A thread may come so late that another job runs: then all it goes by
  // must be in the word that it claims with, or be unable to change before what it claimed is done. That is so of
  // `call_` and `of_`: the caller stores them after it has seen all chunks of the job before done, and a claim of
  // this job succeeded before that, so they were read before that, too.
  void take(uint32_t job) {
    const auto call = call_.load(std::memory_order_relaxed);
    const void* const of = of_.load(std::memory_order_relaxed);
    uint64_t at = next_.load(std::memory_order_acquire);
    while (at >> 32 == job && (at & MOST) < (at >> 16 & MOST))
      if (next_.compare_exchange_weak(at, at + 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
        call(of, (int64_t)(at & MOST));
        done_.fetch_add(1, std::memory_order_release);
        at = next_.load(std::memory_order_acquire);
      }
  }

  void help() {
    for (uint32_t last = 0;;) {
      for (int spins = 1; job_.load(std::memory_order_acquire) == last && spins < SPINS; spins++) rest(spins);
      if (job_.load() == last) {
        std::unique_lock<std::mutex> lock(mutex_);
        sleeping_.fetch_add(1);
        wake_.wait(lock, [&] { return stop_ || job_.load() != last; });
        sleeping_.fetch_sub(1);
        if (stop_) return;
      }
      last = job_.load(std::memory_order_acquire);
      take(last);
    }
  }

  // The job that runs; and in one word its number (32 bits), how many chunks it has and which is next (16 each), so
  // that a claim is never for another job, nor for a chunk that this one has not.
  alignas(64) std::atomic<uint32_t> job_{0};
  std::atomic<void (*)(const void*, int64_t)> call_{nullptr};
  std::atomic<const void*> of_{nullptr};
  alignas(64) std::atomic<uint64_t> next_{0};
  alignas(64) std::atomic<int64_t> done_{0};
  alignas(64) std::atomic<int> sleeping_{0};
  bool stop_ = false;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> others_;
};
