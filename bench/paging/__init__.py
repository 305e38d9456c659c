"""Routing traces, the policies replayed over them, and what paging will cost on a Mac."""
