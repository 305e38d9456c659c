"""Parts of the ledger: trace a step without running it, count it, and say what the count means."""
