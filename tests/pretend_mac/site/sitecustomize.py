"""Python imports this before anything else."""

from pretend_mac import system

system.become_a_mac()
