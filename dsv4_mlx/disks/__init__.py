"""The disk that a folder lies on: what it is, what it can't hold, and who should leave it alone.

volume_of(path)    name, file system, external, over a network    find.py, from macos.py or linux.py
exclude(folder)    Spotlight and Time Machine stay out            exclude.py
"""
