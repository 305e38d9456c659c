"""Whether kernels can be trusted on this machine: each is tried against its reference, in another process."""
