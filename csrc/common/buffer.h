// Scratch memory of kernels: uninitialised, aligned to cache lines, in large pages where it is
// large: touching 100 MB for the first time in pages of 4 KB takes some 30 ms, in pages of 2 MB a
// fraction of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace infoslice {

constexpr size_t kLargePage = size_t{1} << 21;

// Asks for large pages where memory is touched for the first time; without them nothing is lost
// but time.
inline void prefer_large_pages(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kLargePage - 1) / kLargePage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kLargePage;
  if (begin < end)
    madvise(reinterpret_cast<void*>(begin * kLargePage), (end - begin) * kLargePage, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t size)
      : size_(static_cast<size_t>(size)),
        alignment_(size_ * sizeof(T) >= 2 * kLargePage ? kLargePage : 64),
        data_(static_cast<T*>(::operator new(size_ * sizeof(T), std::align_val_t{alignment_}))) {
    prefer_large_pages(data_, size_ * sizeof(T));
  }
  ~Buffer() { ::operator delete(data_, std::align_val_t{alignment_}); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* begin() const { return data_; }
  T* end() const { return data_ + size_; }

 private:
  const size_t size_, alignment_;
  T* const data_;
};

}  // namespace infoslice
