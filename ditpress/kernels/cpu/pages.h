// Giving mapped pages back to the system.
#pragma once

#include <cstddef>

namespace ditpress {

// Drops the whole pages inside [data, data + bytes) from this process where they are clean pages of a file: the next
// read brings them back. Memory of any other kind, and systems that do not tell, are left alone.
void drop_file_pages(const void* data, size_t bytes);

}  // namespace ditpress
