inline void count_one(threadgroup uint* bins, uint bin) {
  atomic_fetch_add_explicit((threadgroup atomic_uint*)(bins + bin), 1u, memory_order_relaxed);
}

inline void publish(device atomic<uint32_t>* total, uint amount) {
  if (amount != 0) {
    atomic_fetch_add_explicit(total, amount, memory_order_relaxed);
  }
}
