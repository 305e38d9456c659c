"""The official checkpoint from the Hub: looked at first, fetched shard by shard, converted while it comes.

remote.py      the list of files, their sizes and digests, at one commit; trying again
headers.py     every shard's header and samples, by small reads
ranges.py      a file in several ranges at a time, and the journal of its blocks
rate.py        how fast files come: measured, and kept for `plan`
fetch.py       a file, checked against its digest
prefetch.py    download of shard n+1 beside conversion of shard n
models.py      MODEL as given -> a folder that is here already, `demo` included
on_disk.py     the models that lie on this disk
download.py    the two jobs: all files into a folder, or a conversion fed by them
"""
