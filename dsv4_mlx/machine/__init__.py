"""This computer: its chip, memory and limits, disks, sleep."""
