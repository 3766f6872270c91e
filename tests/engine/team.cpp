// Short jobs of changing sizes for a team of threads; exit status 1 where a chunk ran other than once.
#include "team.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>

constexpr int64_t SIZES[] = {2, 64, 3, 17}, MANY = 150000;

int main(int, char** arguments) {
  Team team(std::atoi(arguments[1]), [] {});
  std::vector<std::atomic<int>> runs(MANY + 1);

  const auto each_once = [&](int64_t job, int64_t chunks) {
    for (auto& own : runs) {
      own.store(0, std::memory_order_relaxed);
      if (&own - &runs[0] > std::max(chunks, SIZES[1])) break;
    }
    team.run(chunks, [&](int64_t i) { runs[i].fetch_add(1, std::memory_order_relaxed); });
    for (int64_t i = 0; i <= std::max(chunks, SIZES[1]); i++)
      if (const int found = runs[i].load(std::memory_order_relaxed); found != (i < chunks)) {
        std::printf("job %ld of %ld chunks: chunk %ld ran %d times\n", (long)job, (long)chunks, (long)i, found);
        std::exit(1);
      }
  };

  each_once(0, MANY);
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(std::atof(arguments[2]));
  for (int64_t job = 1; std::chrono::steady_clock::now() < end;)
    for (int i = 0; i < 1000; i++, job++) each_once(job, SIZES[job % 4]);
}
