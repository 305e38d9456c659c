// Entry points of the checker for the hooks that the compiler puts at every memory access.
#pragma once

#include <stdint.h>

namespace proof {

struct Use {
  bool write;
  bool read;
  bool atomic;
  bool aligned;  // the compiler took the address to be a multiple of the size
};

void check_access(uintptr_t address, uint64_t size, Use use, uint64_t place);

// A place in the code as findings carry it: relative to the kernel's image, so that it outlives this process.
uint64_t place_of(void* return_address);

}  // namespace proof
