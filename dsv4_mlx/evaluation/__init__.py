"""Is a model sound on this machine, how good is it, how fast.

acceptance.py   `check`, step by step                    report.py      what it found
file_checks.py  files and config.json                    layers.py      each layer against the reference
needles.py      names in long texts                      words.py       the texts
long_run.py     a long answer                            logprobs.py    against stored log-probabilities
perplexity.py   `eval`: perplexity and distances         intervals.py   their uncertainty
throughput.py   `bench`: speeds and memory
"""
