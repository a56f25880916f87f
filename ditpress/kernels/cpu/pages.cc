#include "pages.h"

#include <cstdint>

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

}  // namespace ditpress
