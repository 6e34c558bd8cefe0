#include "team.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace andfast::cpu {
namespace {

using Clock = std::chrono::steady_clock;
using Time = Clock::duration;

constexpr Time kLongest = std::chrono::milliseconds(1), kShortest = std::chrono::microseconds(2);

inline void pause() {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_ia32_pause();
#elif defined(__aarch64__) && defined(__GNUC__)
  asm volatile("yield");
#endif
}

// How long a thread spins before it sleeps. Where another program has the processor that the awaited thread needs,
// waits become long, and spinning ends.
class Patience {
 public:
  Time most() const { return most_; }
  void learn(Time waited) {
    most_ = waited < kLongest ? std::min(kLongest, 2 * most_) : std::max(kShortest, most_ / 2);
  }

 private:
  Time most_ = kLongest;
};

// A number that threads wait for.
class Signal {
 public:
  uint32_t value() const { return value_.load(); }

  void increase() {
    value_.fetch_add(1);
    if (sleepers_.load() == 0) return;
    {
      const std::lock_guard<std::mutex> guard(mutex_);
    }  // a sleeper has looked before, or looks again
    changed_.notify_all();
  }

  void wait_for(uint32_t wanted, Patience& patience) {
    if (value() == wanted) return;
    const Clock::time_point began = Clock::now();
    while (value() != wanted && Clock::now() - began < patience.most()) {
      for (int i = 0; i < 32 && value() != wanted; ++i) pause();
      std::this_thread::yield();  // to threads of PyTorch's own loops, and to other programs
    }
    if (value() != wanted) {
      std::unique_lock<std::mutex> lock(mutex_);
      sleepers_.fetch_add(1);
      changed_.wait(lock, [&] { return value() == wanted; });
      sleepers_.fetch_sub(1);
    }
    patience.learn(Clock::now() - began);
  }

 private:
  std::atomic<uint32_t> value_{0};
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
};

class Team {
 public:
  bool run(int64_t count, int64_t grain, int64_t threads, const Task& task) {
    if (running_.test_and_set(std::memory_order_acquire)) return false;
    const int64_t parts = add_workers(std::max<int64_t>(1, std::min(threads, (count + grain - 1) / grain)) - 1) + 1;
    const int64_t each = (count + parts - 1) / parts;
    size_t given = 0;
    for (int64_t begin = each; begin < count; begin += each, ++given) {
      workers_[given]->give({&task, begin, std::min(count, begin + each)});
    }
    std::exception_ptr error = count > 0 ? Part{&task, 0, std::min(count, each)}.run() : nullptr;
    expected_ += uint32_t(given);
    done_.wait_for(expected_, patience_);
    for (size_t i = 0; i < given; ++i) {
      if (std::exception_ptr other = workers_[i]->take_error()) error = other;
    }
    running_.clear(std::memory_order_release);
    if (error) std::rethrow_exception(error);
    return true;
  }

 private:
  struct Part {
    const Task* task;
    int64_t begin, end;

    std::exception_ptr run() const {
      try {
        (*task)(begin, end);
      } catch (...) {
        return std::current_exception();
      }
      return nullptr;
    }
  };

  class Worker {
   public:
    explicit Worker(Signal& done) : done_(done) {
      std::thread([this] { work(); }).detach();
    }
    void give(Part part) {
      part_ = part;
      given_.increase();
    }
    std::exception_ptr take_error() { return std::exchange(error_, nullptr); }

   private:
    [[noreturn]] void work() {
      Patience patience;
      for (uint32_t next = 1;; ++next) {
        given_.wait_for(next, patience);
        error_ = part_.run();
        done_.increase();
      }
    }

    Signal& done_;  // of all workers
    Signal given_;
    Part part_{};
    std::exception_ptr error_;
  };

  // Returns how many of those wanted there are: the system may allow no more threads.
  int64_t add_workers(int64_t wanted) {
    try {
      while (int64_t(workers_.size()) < wanted) workers_.push_back(std::make_unique<Worker>(done_));
    } catch (const std::system_error&) {
    }
    return std::min<int64_t>(wanted, workers_.size());
  }

  std::atomic_flag running_ = ATOMIC_FLAG_INIT;
  std::vector<std::unique_ptr<Worker>> workers_;
  Signal done_;
  uint32_t expected_ = 0;
  Patience patience_;
};

// Teams are never destroyed: their threads wait until the process ends.
Team& this_process_team() {
  static Team* team = new Team;
#if defined(__unix__) || defined(__APPLE__)
  // A forked process has none of the threads.
  static const int registered = pthread_atfork(nullptr, nullptr, [] { team = new Team; });
  (void)registered;
#endif
  return *team;
}

}  // namespace

bool run_in_team(int64_t count, int64_t grain, int64_t threads, const Task& task) {
  return this_process_team().run(count, grain, threads, task);
}

}  // namespace andfast::cpu
