"""The official checkpoint from the Hub: looked at first, fetched shard by shard, converted while it comes.

look      the list of files, their sizes and digests, at one commit     remote.py
outline   every shard's header and samples, by small reads              headers.py
fetch     a file, resumed, checked against its digest                   fetch.py
download  all of them into a folder                                     download.py
convert   download of shard n+1 beside conversion of shard n            prefetch.py, download.py
"""
