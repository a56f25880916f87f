#include "pages.h"

#include <cstdint>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace ditpress {

void drop_file_pages(const void* data, size_t bytes) {
#if defined(__linux__)
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + page - 1) / page;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + bytes) / page;
  if (first >= last) return;
  const int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  if (pagemap < 0) return;
  // One word a page. A written page of a private mapping is anonymous: dropping it would lose what was written, so a
  // page counts only while it still is the file's, or is not there at all.
  constexpr uint64_t kPresent = uint64_t{1} << 63, kSwapped = uint64_t{1} << 62, kOfFile = uint64_t{1} << 61;
  uint64_t words[512];
  for (uintptr_t at = first; at < last;) {
    const size_t want = last - at < 512 ? last - at : 512;
    const ssize_t got = pread(pagemap, words, want * sizeof(uint64_t), static_cast<off_t>(at * sizeof(uint64_t)));
    if (got != static_cast<ssize_t>(want * sizeof(uint64_t))) break;
    bool droppable = true;
    for (size_t i = 0; i < want; ++i) droppable &= (words[i] & kOfFile) || !(words[i] & (kPresent | kSwapped));
    if (droppable) madvise(reinterpret_cast<void*>(at * page), want * page, MADV_DONTNEED);
    at += want;
  }
  close(pagemap);
#else
  (void)data;
  (void)bytes;
#endif
}

namespace {

constexpr size_t kLine = 64;
#if defined(__linux__)
constexpr size_t kHuge = size_t{2} << 20;
#endif

size_t rounded(size_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

}  // namespace

void* take_pages(size_t bytes) {
#if defined(__linux__)
  if (bytes >= kHuge) {
    // Mapped with room to begin on a huge page; what is too much at both ends goes back.
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), length = (bytes + page - 1) / page * page;
    void* const raw = mmap(nullptr, length + kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) return nullptr;
    char* const first = static_cast<char*>(raw);
    char* const data = first + (kHuge - reinterpret_cast<uintptr_t>(raw) % kHuge) % kHuge;
    if (data != first) munmap(first, static_cast<size_t>(data - first));
    munmap(data + length, kHuge - static_cast<size_t>(data - first));
    madvise(data, length, MADV_HUGEPAGE);
    return data;
  }
#endif
  void* const data = ::operator new(rounded(bytes), std::align_val_t{kLine}, std::nothrow);
  if (data) std::memset(data, 0, bytes);
  return data;
}

void give_pages(void* data, size_t bytes) {
  if (!data) return;
#if defined(__linux__)
  if (bytes >= kHuge) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    munmap(data, (bytes + page - 1) / page * page);
    return;
  }
#endif
  ::operator delete(data, std::align_val_t{kLine});
}

}  // namespace ditpress
