// Giving mapped pages back to the system.
#pragma once

#include <cstddef>

namespace ditpress {

// Drops the whole pages inside [data, data + bytes) from this process where they are clean pages of a file: the next
// read brings them back. Memory of any other kind, and systems that do not tell, are left alone.
void drop_file_pages(const void* data, size_t bytes);

// Zeroed memory on a cache line boundary, null when there is none; large blocks in huge pages where the system has them,
// which saves the products a few percent of address translation.
void* take_pages(size_t bytes);
void give_pages(void* data, size_t bytes);

}  // namespace ditpress
