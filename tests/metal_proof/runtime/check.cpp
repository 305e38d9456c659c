// The checker: every access of a kernel compiled with the compiler's thread-sanitizer instrumentation comes
// here *before* it happens (hooks.cpp), so that a wrong one can be reported and never performed.

#include "check.h"

#include <link.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "shadow.h"

namespace proof {

namespace {

constexpr size_t kGap = 1 << 16;  // between buffers; address space only
constexpr uint8_t kLoaded = 1, kStored = 2, kInitialised = 4;

struct Region {
  uintptr_t base;
  size_t size;
  Buffer* buffer;
  uint8_t* bytes;  // kLoaded | kStored | kInitialised, by byte
  Cell* cells;     // outputs only: nothing else may be written
};

Region regions[64];
int region_count;
int last_region;
void* mapping;
size_t mapping_size;

Cell* threadgroup_cells;
uint32_t* threadgroup_written;  // by byte: 1 + the threadgroup that last wrote it

// The kernel's own image: its constant tables may be read.
struct Image {
  uintptr_t base, begin, end;
} image;

int find_image(dl_phdr_info* info, size_t, void*) {
  uintptr_t function = reinterpret_cast<uintptr_t>(machine.launch->function);
  uintptr_t begin = ~uintptr_t{0}, end = 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr)& header = info->dlpi_phdr[i];
    if (header.p_type != PT_LOAD) continue;
    uintptr_t start = info->dlpi_addr + header.p_vaddr;
    if (start < begin) begin = start;
    if (start + header.p_memsz > end) end = start + header.p_memsz;
  }
  if (function < begin || function >= end) return 0;
  image = {info->dlpi_addr, begin, end};
  return 1;
}

void* map_zeroed(size_t size) {
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) abort();
  return memory;
}

size_t round_up(size_t size) { return (size + 63) / 64 * 64; }

// In the order of the mapping: the data, then for each buffer its byte flags and cells.
size_t bytes_needed(const Buffer& buffer) {
  size_t cells = buffer.role == Role::Output ? buffer.size * sizeof(Cell) : 0;
  return round_up(buffer.size) + kGap + round_up(buffer.size) + round_up(cells);
}

Finding finding_at(Kind kind, uint64_t size, Use use, uint64_t place) {
  Finding finding{};
  finding.kind = kind;
  finding.bytes = static_cast<uint32_t>(size);
  finding.now = party(machine.index_of(machine.current), place);
  finding.now.write = use.write;
  finding.now.atomic = use.atomic;
  finding.now.matrix = machine.current->in_matrix;
  return finding;
}

void report_race(Finding finding, const Access& before, bool before_write) {
  finding.kind = Kind::Race;
  finding.before = {before.place & Access::kPlace, before.thread % kMaxThreads, before.group(),
                    before.atomic(),               before_write,                (before.place & Access::kMatrix) != 0};
  report(finding);
}

// An address in no buffer, variable or table: name the nearest thing it may have been meant for, and stop.
void report_out_of_bounds(uintptr_t address, Finding finding) {
  finding.kind = Kind::OutOfBounds;
  uintptr_t best = ~uintptr_t{0};
  for (int i = 0; i < region_count; ++i) {
    const Region& region = regions[i];
    uintptr_t end = region.base + region.size;
    uintptr_t away = address < region.base ? region.base - address : address >= end ? address - end : 0;
    if (away >= best) continue;
    best = away;
    finding.region = i;
    finding.offset = static_cast<int64_t>(address - region.base);
  }
  int id = in_threadgroup_arena(address) ? threadgroup_variable_near(address) : -1;
  if (id >= 0) {
    finding.region = -1 - id;
    finding.offset = static_cast<int64_t>(address - reinterpret_cast<uintptr_t>(threadgroup_variable(id).base));
    finding.count = threadgroup_variable(id).size;
  }
  report(finding);
  stop_launch();
}

Access access_now(Space space, Use use, uint64_t place) {
  uint32_t index = machine.index_of(machine.current);
  uint32_t flags = Access::kValid | (use.atomic ? Access::kAtomic : 0) |
                   (machine.current->in_matrix ? Access::kMatrix : 0);
  return {machine.group * kMaxThreads + index, machine.epoch[space],
          machine.simdgroup_epoch[index / kLanes][space], flags | (static_cast<uint32_t>(place) & Access::kPlace)};
}

void check_order(Cell* cells, uint64_t size, const Access& now, Use use, Finding finding) {
  for (uint64_t i = 0; i < size; ++i) {
    Cell& cell = cells[i];
    if (const Access* before = cell.writes.find_conflict(now)) return report_race(finding, *before, true);
    if (use.write) {
      if (const Access* before = cell.reads.find_conflict(now)) return report_race(finding, *before, false);
      cell.writes.remember(now);
    } else {
      cell.reads.remember(now);
    }
  }
}

void check_buffer(Region& region, uintptr_t address, uint64_t size, Use use, uint64_t place) {
  size_t offset = address - region.base;
  uint8_t* bytes = region.bytes + offset;
  Finding finding = finding_at(Kind::Uninitialised, size, use, place);
  finding.region = static_cast<int32_t>(&region - regions);
  finding.offset = static_cast<int64_t>(offset);
  if (region.buffer->role != Role::Output) {
    if (use.write) {
      finding.kind = Kind::WriteToInput;
      report(finding);
      stop_launch();
    }
    memset(bytes, kLoaded | kInitialised, size);
    return;
  }
  uint8_t all = kInitialised;
  for (uint64_t i = 0; i < size; ++i) {
    all &= bytes[i];
    bytes[i] |= static_cast<uint8_t>((use.read ? kLoaded : 0) | (use.write ? kStored | kInitialised : 0));
  }
  if (use.read && !all) report(finding);
  check_order(region.cells + offset, size, access_now(kDevice, use, place), use, finding);
}

void check_threadgroup(uintptr_t address, uint64_t size, Use use, uint64_t place) {
  int id = threadgroup_variable_near(address);
  Finding finding = finding_at(Kind::Uninitialised, size, use, place);
  if (id < 0) return report_out_of_bounds(address, finding);
  uintptr_t offset = address - reinterpret_cast<uintptr_t>(threadgroup_variable(id).base);
  if (offset >= threadgroup_variable(id).size || size > threadgroup_variable(id).size - offset)
    return report_out_of_bounds(address, finding);
  finding.region = -1 - id;
  finding.offset = static_cast<int64_t>(offset);

  size_t first = address - threadgroup_arena_base();
  uint32_t mark = machine.group + 1;
  bool unwritten = false;
  for (uint64_t i = 0; i < size; ++i) {
    uint32_t& written = threadgroup_written[first + i];
    if (written != mark) {
      // Left over from an earlier threadgroup: not this one's memory, nor its history.
      threadgroup_cells[first + i] = {};
      unwritten = true;
    }
    if (use.write) written = mark;
  }
  if (unwritten && use.read) report(finding);
  check_order(threadgroup_cells + first, size, access_now(kThreadgroup, use, place), use, finding);
}

Region* find_region(uintptr_t address) {
  if (address - regions[last_region].base < regions[last_region].size) return &regions[last_region];
  for (int i = 0; i < region_count; ++i) {
    if (address - regions[i].base >= regions[i].size) continue;
    last_region = i;
    return &regions[i];
  }
  return nullptr;
}

}  // namespace

// One byte back: a return address may already belong to the next line.
uint64_t place_of(void* return_address) { return reinterpret_cast<uint64_t>(return_address) - 1 - image.base; }

void check_access(uintptr_t address, uint64_t size, Use use, uint64_t place) {
  // The scheduler's own work on lanes' slots, and the thread's own memory. Another's stack is out of bounds: a
  // wild address often lies there, and one in its guard page would end the process.
  if (machine.current == nullptr || in_stack(machine.index_of(machine.current), address)) return;
  if (!machine.launch->check) return;
  if (machine.launch->access_limit-- == 0) {
    report(finding_at(Kind::TooLong, size, use, place));
    stop_launch();
  }
  if (machine.random() && machine.next_random() % 32 == 0) yield_fibre();
  if (use.aligned && (address & (size - 1)) != 0) report(finding_at(Kind::Misaligned, size, use, place));
  if (in_threadgroup_arena(address)) return check_threadgroup(address, size, use, place);
  Region* region = find_region(address);
  if (region != nullptr && size <= region->size - (address - region->base))
    return check_buffer(*region, address, size, use, place);
  // The kernel's constant tables, and the thread attributes of the launcher.
  bool table = (address >= image.begin && address < image.end) ||
               address - reinterpret_cast<uintptr_t>(&machine) < sizeof machine;
  if (table && !use.write) return;
  report_out_of_bounds(address, finding_at(Kind::OutOfBounds, size, use, place));
}

void begin_check() {
  Launch& launch = *machine.launch;
  if (threadgroup_cells == nullptr) {
    threadgroup_cells = static_cast<Cell*>(map_zeroed(threadgroup_arena_size() * sizeof(Cell)));
    threadgroup_written = static_cast<uint32_t*>(map_zeroed(threadgroup_arena_size() * sizeof(uint32_t)));
  }
  memset(threadgroup_written, 0, threadgroup_arena_size() * sizeof(uint32_t));
  dl_iterate_phdr(find_image, nullptr);

  mapping_size = kGap;
  for (int i = 0; i < launch.buffer_count; ++i) mapping_size += bytes_needed(launch.buffers[i]);
  mapping = map_zeroed(mapping_size);
  char* at = static_cast<char*>(mapping) + kGap;
  region_count = launch.buffer_count;
  last_region = 0;
  for (int i = 0; i < region_count; ++i) {
    Buffer& buffer = launch.buffers[i];
    Region& region = regions[i];
    region = {reinterpret_cast<uintptr_t>(at), buffer.size, &buffer, nullptr, nullptr};
    memcpy(at, buffer.data, buffer.size);
    machine.buffers[i] = at;
    at += round_up(buffer.size) + kGap;
    region.bytes = reinterpret_cast<uint8_t*>(at);
    if (buffer.initialised) memset(region.bytes, kInitialised, buffer.size);
    at += round_up(buffer.size);
    if (buffer.role != Role::Output) continue;
    region.cells = reinterpret_cast<Cell*>(at);
    at += round_up(buffer.size * sizeof(Cell));
  }
}

void end_check() {
  for (int i = 0; i < region_count; ++i) {
    const Region& region = regions[i];
    Buffer& buffer = *region.buffer;
    buffer.loaded = buffer.stored = buffer.unwritten = 0;
    for (size_t byte = 0; byte < region.size; ++byte) {
      buffer.loaded += (region.bytes[byte] & kLoaded) != 0;
      buffer.stored += (region.bytes[byte] & kStored) != 0;
      buffer.unwritten += (region.bytes[byte] & kInitialised) == 0;
    }
    if (buffer.role == Role::Output) memcpy(buffer.data, reinterpret_cast<void*>(region.base), region.size);
  }
  munmap(mapping, mapping_size);
  region_count = 0;
}

}  // namespace proof

using namespace proof;

extern "C" void proof_atomic(const void* address, uint32_t size, uint32_t read, uint32_t write) {
  uint64_t place = place_of(__builtin_return_address(0));
  check_access(reinterpret_cast<uintptr_t>(address), size, {write != 0, read != 0, true, true}, place);
}

extern "C" void proof_matrix_access(int inside) { machine.current->in_matrix = inside != 0; }

extern "C" void proof_inactive_lane(int line) {
  Finding finding{};
  finding.kind = Kind::InactiveLane;
  finding.line = line;
  report(finding);
}
