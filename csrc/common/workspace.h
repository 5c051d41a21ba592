// Memory in large pages where it is large. Touching 100 MB for the first time takes some 30 ms in
// pages of 4 KB, a fraction of it in pages of 2 MB; NumPy asks for them too.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace infoslice {

constexpr size_t kLargePage = size_t{2} << 20;

// Asks for large pages for memory that is about to be written for the first time. Only advice: no
// value changes, and nothing happens where the system has none, where no whole one fits, or where
// the pages exist already.
inline void prefer_large_pages([[maybe_unused]] void* memory, [[maybe_unused]] size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kLargePage - 1) / kLargePage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / kLargePage;
  if (begin < end)
    madvise(reinterpret_cast<void*>(begin * kLargePage), (end - begin) * kLargePage, MADV_HUGEPAGE);
#endif
}

/// Scratch memory of a kernel: not initialised, aligned for the widest register, or for large pages
/// where it fills two.
template <class T>
class Workspace {
 public:
  explicit Workspace(int64_t count) : count_(count) {
    size_t bytes = static_cast<size_t>(count > 0 ? count : 1) * sizeof(T);
    std::align_val_t alignment{64};
    if (bytes >= 2 * kLargePage) {
      alignment = std::align_val_t{kLargePage};
      bytes = (bytes + kLargePage - 1) / kLargePage * kLargePage;
    }
    data_ = {static_cast<T*>(::operator new(bytes, alignment)), Free{alignment}};
    prefer_large_pages(data_.get(), bytes);
  }
  T* get() const { return data_.get(); }
  T* begin() const { return data_.get(); }
  T* end() const { return data_.get() + count_; }

 private:
  struct Free {
    std::align_val_t alignment;
    void operator()(T* p) const { ::operator delete(p, alignment); }
  };
  int64_t count_;
  std::unique_ptr<T, Free> data_{nullptr, Free{}};
};

}  // namespace infoslice
