"""Messages -> token ids, and sampled ids -> what the model said. The vendor's protocol library does both."""
