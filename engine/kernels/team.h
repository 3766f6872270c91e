// A thread pool that shares the work of one caller in small chunks.
//
// A decoding step runs some 150 short parallel jobs, one after the other. With a barrier after each, as in OpenMP,
// every thread must be scheduled 150 times: next to one other busy process a step took eight times as long. Here the
// caller waits only for work, not for threads: any free thread claims the next chunk, and a thread that comes too
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

  // Calls f(0) to f(chunks - 1), each once, on any free thread; returns when all are done. One caller at a time.
  template <class F>
  void run(int64_t chunks, const F& f) {
    if (chunks <= 1 || others_.empty()) {
      for (int64_t i = 0; i < chunks; i++) f(i);
      return;
    }
    const int64_t each = (chunks + MOST - 1) / MOST;  // 1, unless there are more chunks than a claim can count
    share((chunks + each - 1) / each, [&](int64_t i) {
      for (int64_t j = i * each; j < std::min(chunks, (i + 1) * each); j++) f(j);
    });
  }

 private:
  static constexpr int64_t MOST = 0xffff;
  static constexpr int SPINS = 8192, POLITE = 32;  // pauses before sleep (about half a millisecond); between yields

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
      { std::lock_guard<std::mutex> lock(mutex_); }  // a thread between its last check and its sleep is not missed
      wake_.notify_all();
    }
    take(job);
    for (int spins = 1; done_.load(std::memory_order_acquire) < chunks; spins++) rest(spins);
  }

  // Claims chunks of this job while there are any. A thread may come so late that another job is running. Everything it
  // relies on must therefore be in the word with which it claims, or must not change before the claimed chunk is done.
  // The latter holds for `call_` and `of_`: the caller stores new ones only after it has seen that all chunks of the
  // job before are done. A successful claim of that job precedes this, and the reads precede the claim.
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

  // `job_` is the number of the current job. `next_` holds in one word its number (32 bits), its number of chunks and
  // the next chunk (16 bits each), so that a claim is never for another job or for a chunk that does not exist.
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
