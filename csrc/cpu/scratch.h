// Memory for intermediate results, of float32.
#pragma once

#include <cstdint>
#include <utility>

namespace andfast::cpu {

// Numbers from the beginning of a cache line on, since vectors that lie in two lines take twice as long to load; not
// initialised. Large blocks are of huge pages where the system has some: transformed tiles lie in more small pages than
// the processor's table of pages holds. Some of them are kept for the next call; see scratch.cpp.
class Scratch {
 public:
  explicit Scratch(int64_t count);
  ~Scratch();
  Scratch(Scratch&& other) noexcept : numbers_(std::exchange(other.numbers_, nullptr)), bytes_(other.bytes_) {}
  float* get() const { return numbers_; }

 private:
  float* numbers_;
  int64_t bytes_;
};

}  // namespace andfast::cpu
