// Runs a launch: threadgroups one after another, the threads of a group as fibres that switch at barriers,
// simdgroup operations and (in a checked random schedule) memory accesses.
//
// Threadgroups need no interleaving: the checker treats any two of them as unordered whatever their order here.

#include <string.h>

#include "machine.h"

namespace proof {

Machine machine;

uint32_t Machine::next_random() {
  // xorshift64*: good enough to shuffle threads, and the same on every platform.
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return static_cast<uint32_t>((random_state * 0x2545F4914F6CDD1DULL) >> 32);
}

Party party(uint32_t thread, uint64_t place) { return {place, thread, machine.group, 0, 0, 0}; }

void report(const Finding& finding) {
  Launch& launch = *machine.launch;
  for (int i = 0; i < launch.finding_count; ++i) {
    const Finding& known = launch.findings[i];
    if (known.kind == finding.kind && known.line == finding.line && known.now.place == finding.now.place) return;
  }
  if (launch.finding_count < launch.finding_capacity) launch.findings[launch.finding_count++] = finding;
}

namespace {

void leave_fibre() {
  Fibre* self = machine.current;
  machine.current = nullptr;
  switch_context(self->context, machine.scheduler);
}

void fibre_main() {
  Fibre* self = machine.current;
  machine.launch->function(machine.buffers, &self->ids);
  self->state = State::Done;
  ++machine.done;
  leave_fibre();
}

void block(State state, int line) {
  Fibre* self = machine.current;
  uint32_t index = machine.index_of(self);
  self->state = state;
  self->line = line;
  machine.ready[index / kLanes] &= ~(1u << (index % kLanes));
  leave_fibre();
}

// The lowest bit set, or a random one in a random schedule.
uint32_t pick_bit(uint32_t bits) {
  uint32_t turn = machine.random() ? machine.next_random() % 32 : 0;
  uint32_t above = bits >> turn;
  return above ? turn + static_cast<uint32_t>(__builtin_ctz(above)) : static_cast<uint32_t>(__builtin_ctz(bits));
}

void make_ready(uint32_t index) {
  machine.fibres[index].state = State::Ready;
  machine.active |= 1u << (index / kLanes);
  machine.ready[index / kLanes] |= 1u << (index % kLanes);
}

void run_fibre(uint32_t index) {
  Fibre& fibre = machine.fibres[index];
  machine.current = &fibre;
  switch_context(machine.scheduler, fibre.context);
  if (fibre.state == State::Done) machine.ready[index / kLanes] &= ~(1u << (index % kLanes));
}

uint32_t lanes_of(uint32_t simdgroup) {
  uint32_t left = machine.threads - simdgroup * kLanes;
  return left >= kLanes ? ~0u : (1u << left) - 1;
}

// `missing` is a thread that should have come to the barrier and did not.
void report_divergent(const Fibre& waiting, uint32_t missing, uint32_t missing_count) {
  const Fibre& other = machine.fibres[missing];
  Finding finding{};
  finding.kind = Kind::DivergentBarrier;
  finding.line = waiting.line;
  finding.region = static_cast<int32_t>(waiting.state == State::AtThreadgroupBarrier);
  finding.count = missing_count;
  finding.offset = other.state == State::Done ? 0 : other.line;
  finding.now = party(machine.index_of(&waiting), 0);
  finding.before = party(missing, 0);
  report(finding);
  stop_launch();
}

// With no lane of the simdgroup able to run, lets the lanes that wait at one and the same simdgroup operation
// perform it. Of several operations the earliest in the text goes first: its lanes are the ones that have not
// yet reached the point where the branches join.
bool resolve_simdgroup(uint32_t simdgroup) {
  Fibre* lanes = machine.fibres + simdgroup * kLanes;
  uint32_t present = lanes_of(simdgroup);
  const Fibre* first = nullptr;
  for (uint32_t lane = 0; lane < kLanes; ++lane) {
    if (!(present >> lane & 1)) continue;
    const Fibre& fibre = lanes[lane];
    bool waits = fibre.state == State::AtCollective || fibre.state == State::AtSimdgroupBarrier;
    if (waits && (first == nullptr || fibre.line < first->line)) first = &fibre;
  }
  if (first == nullptr) return false;

  uint32_t together = 0, missing = 0;
  void* slots[kLanes] = {};
  uint32_t flags = ~0u;
  for (uint32_t lane = 0; lane < kLanes; ++lane) {
    if (!(present >> lane & 1)) continue;
    const Fibre& fibre = lanes[lane];
    if (fibre.state != first->state || fibre.line != first->line || fibre.combine != first->combine) {
      missing = lane;
      continue;
    }
    together |= 1u << lane;
    slots[lane] = fibre.slot;
    flags &= fibre.flags;
  }
  if (first->state == State::AtSimdgroupBarrier) {
    if (together != present) {
      report_divergent(*first, simdgroup * kLanes + missing,
                       static_cast<uint32_t>(__builtin_popcount(present & ~together)));
      return false;
    }
    for (uint32_t space = 0; space < 2; ++space) machine.simdgroup_epoch[simdgroup][space] += flags >> space & 1;
  } else {
    if (together != present) ++machine.launch->partial_collectives;
    first->combine(slots, together);
  }
  for (uint32_t lane = 0; lane < kLanes; ++lane)
    if (together >> lane & 1) make_ready(simdgroup * kLanes + lane);
  return true;
}

// Every live thread is at a threadgroup barrier, or the kernel is wrong.
void release_threadgroup() {
  const Fibre* first = nullptr;
  for (uint32_t i = 0; i < machine.threads && first == nullptr; ++i)
    if (machine.fibres[i].state == State::AtThreadgroupBarrier) first = &machine.fibres[i];
  uint32_t missing = 0, missing_count = 0;
  for (uint32_t i = machine.threads; i-- > 0;) {
    const Fibre& fibre = machine.fibres[i];
    if (fibre.state == State::AtThreadgroupBarrier && fibre.line == first->line) continue;
    missing = i;
    ++missing_count;
  }
  if (missing_count != 0) return report_divergent(*first, missing, missing_count);

  for (uint32_t space = 0; space < 2; ++space) machine.epoch[space] += first->flags >> space & 1;
  for (uint32_t i = 0; i < machine.threads; ++i) make_ready(i);
}

// Runs one thread (a random one in a random schedule); false if none can run.
bool step() {
  while (machine.active != 0) {
    uint32_t simdgroup = pick_bit(machine.active);
    if (machine.ready[simdgroup] == 0 && !resolve_simdgroup(simdgroup)) {
      if (machine.stopped) return false;
      machine.active &= ~(1u << simdgroup);  // until the threadgroup barrier opens
      continue;
    }
    run_fibre(simdgroup * kLanes + pick_bit(machine.ready[simdgroup]));
    return true;
  }
  return false;
}

void prepare_threads(const uint32_t at[3], const uint32_t groups[3]) {
  const Launch& launch = *machine.launch;
  uint32_t extent[3];
  for (int d = 0; d < 3; ++d) {
    uint32_t left = launch.grid[d] - at[d] * launch.threadgroup[d];
    extent[d] = left < launch.threadgroup[d] ? left : launch.threadgroup[d];
  }
  machine.threads = extent[0] * extent[1] * extent[2];
  machine.done = 0;
  machine.active = 0;
  memset(machine.ready, 0, sizeof machine.ready);
  memset(machine.epoch, 0, sizeof machine.epoch);
  memset(machine.simdgroup_epoch, 0, sizeof machine.simdgroup_epoch);
  for (uint32_t i = 0; i < machine.threads; ++i) {
    Fibre& fibre = machine.fibres[i];
    uint32_t position[3] = {i % extent[0], i / extent[0] % extent[1], i / (extent[0] * extent[1])};
    for (int d = 0; d < 3; ++d) {
      fibre.ids.thread_position_in_threadgroup[d] = position[d];
      fibre.ids.thread_position_in_grid[d] = at[d] * launch.threadgroup[d] + position[d];
      fibre.ids.threadgroup_position_in_grid[d] = at[d];
      fibre.ids.threads_per_grid[d] = launch.grid[d];
      fibre.ids.threadgroups_per_grid[d] = groups[d];
      fibre.ids.threads_per_threadgroup[d] = extent[d];
      fibre.ids.dispatch_threads_per_threadgroup[d] = launch.threadgroup[d];
    }
    fibre.ids.thread_index_in_threadgroup = i;
    fibre.in_matrix = false;
    prepare_context(fibre.context, i, fibre_main);
    make_ready(i);
  }
}

void run_group() {
  reset_threadgroup_memory();
  while (!machine.stopped && machine.done < machine.threads) {
    if (step()) continue;
    if (machine.stopped) return;
    release_threadgroup();
  }
}

}  // namespace

void stop_launch() {
  machine.stopped = true;
  if (machine.current != nullptr) leave_fibre();
}

void yield_fibre() { leave_fibre(); }

}  // namespace proof

using namespace proof;

extern "C" void proof_barrier(Scope scope, uint32_t flags, int line) {
  machine.current->flags = flags;
  machine.current->combine = nullptr;
  block(scope == Scope::Threadgroup ? State::AtThreadgroupBarrier : State::AtSimdgroupBarrier, line);
}

extern "C" void proof_collective(Combine combine, void* slot, int line) {
  machine.current->combine = combine;
  machine.current->slot = slot;
  block(State::AtCollective, line);
}

extern "C" uint32_t proof_lane() { return machine.index_of(machine.current) % kLanes; }

extern "C" void proof_launch(Launch* launch) {
  machine.launch = launch;
  machine.current = nullptr;
  machine.stopped = false;
  machine.random_state = launch->seed * 0x9E3779B97F4A7C15ULL + 1;
  for (int i = 0; i < launch->buffer_count; ++i) machine.buffers[i] = launch->buffers[i].data;
  if (launch->check) begin_check();

  uint32_t groups[3], total = 1;
  for (int d = 0; d < 3; ++d) {
    groups[d] = (launch->grid[d] + launch->threadgroup[d] - 1) / launch->threadgroup[d];
    total *= groups[d];
  }
  // An odd stride prime to the count visits every group once, in an order that looks shuffled.
  uint32_t start = machine.pick(total), stride = 1;
  if (machine.random()) {
    auto divides = [&](uint32_t a) { uint32_t b = total; while (b) { uint32_t t = a % b; a = b; b = t; } return a > 1; };
    do stride = 1 + machine.next_random() % total; while (divides(stride));
  }
  for (uint64_t i = 0; i < total && !machine.stopped; ++i) {
    uint32_t linear = static_cast<uint32_t>((start + i * stride) % total);
    uint32_t at[3] = {linear % groups[0], linear / groups[0] % groups[1], linear / (groups[0] * groups[1])};
    machine.group = linear;
    prepare_threads(at, groups);
    run_group();
  }
  if (launch->check) end_check();
}

extern "C" int proof_flush(int on) {
#if defined(__x86_64__)
  const uint32_t bits = 0x8040, before = __builtin_ia32_stmxcsr();  // results and arguments
  __builtin_ia32_ldmxcsr(on ? before | bits : before & ~bits);
  return (before & bits) == bits;
#elif defined(__aarch64__)
  const uint64_t bit = 1 << 24;
  uint64_t before;
  asm volatile("mrs %0, fpcr" : "=r"(before));
  asm volatile("msr fpcr, %0" : : "r"(on ? before | bit : before & ~bit));
  return (before & bit) != 0;
#else
  (void)on;
  return -1;
#endif
}
