"""Routed experts that live on disk and are read into a fixed number of slots. Costs time, never a bit."""
