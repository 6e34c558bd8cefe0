#include "scratch.h"

#include <new>
#if defined(__linux__)
#include <sys/mman.h>

#include <algorithm>
#include <list>
#include <mutex>
#endif

#include "gemm.h"

namespace andfast::cpu {
namespace {

constexpr std::align_val_t kCacheLine{64};

#if defined(__linux__)
constexpr int64_t kPage = 2 << 20;

// Whole pages, `bytes` in all.
void* map_pages(int64_t bytes) {
  void* mapped = mmap(nullptr, bytes + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  char* first = static_cast<char*>(mapped);
  const int64_t before = round_up(reinterpret_cast<intptr_t>(mapped), kPage) - reinterpret_cast<intptr_t>(mapped);
  if (before > 0) munmap(first, before);
  if (before < kPage) munmap(first + before + bytes, kPage - before);
  madvise(first + before, bytes, MADV_HUGEPAGE);  // only a hint: without it all works, but slower
  return first + before;
}

// Blocks that nobody uses, the oldest first. The system zeroes the pages of a new one, which takes about as long as the
// convolution that fills it: some are kept for the next call, as a step of training makes the same ones again and
// again.
class FreeBlocks {
 public:
  void* take(int64_t bytes) {
    const std::lock_guard<std::mutex> guard(mutex_);
    const auto found = std::find_if(blocks_.begin(), blocks_.end(), [&](const Block& b) { return b.bytes == bytes; });
    if (found == blocks_.end()) return map_pages(bytes);
    void* first = found->first;
    blocks_.erase(found), kept_ -= bytes;
    return first;
  }
  void give(void* first, int64_t bytes) {
    const std::lock_guard<std::mutex> guard(mutex_);
    blocks_.push_back({first, bytes}), kept_ += bytes;
    for (; kept_ > kMost; blocks_.pop_front()) {
      munmap(blocks_.front().first, blocks_.front().bytes), kept_ -= blocks_.front().bytes;
    }
  }

 private:
  struct Block {
    void* first;
    int64_t bytes;
  };
  static constexpr int64_t kMost = int64_t{64} << 20;
  std::mutex mutex_;
  std::list<Block> blocks_;
  int64_t kept_ = 0;
};

FreeBlocks& free_blocks() {
  static FreeBlocks& blocks = *new FreeBlocks;  // never destroyed: threads may still run when the process ends
  return blocks;
}
#endif

}  // namespace

Scratch::Scratch(int64_t count) : numbers_(nullptr), bytes_(count * int64_t{sizeof(float)}) {
#if defined(__linux__)
  if (bytes_ >= kPage / 2) {
    bytes_ = round_up(bytes_, kPage);
    numbers_ = static_cast<float*>(free_blocks().take(bytes_));
    return;
  }
#endif
  numbers_ = static_cast<float*>(::operator new(bytes_, kCacheLine));
}

Scratch::~Scratch() {
  if (!numbers_) return;
#if defined(__linux__)
  if (bytes_ >= kPage) {
    free_blocks().give(numbers_, bytes_);
    return;
  }
#endif
  ::operator delete(numbers_, kCacheLine);
}

}  // namespace andfast::cpu
