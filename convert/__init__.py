"""Official FP8/FP4 checkpoint -> the MLX layout that `checkpoint/manifest.py` describes.

run.py              THE MAIN PATH of a conversion: start reading here
conversion_plan.py  config and recipe -> every output file, byte for byte
recipe.py           in which format each weight is stored
shards.py           where the weights come from
steps.py            a file of the plan -> steps of bounded size
codec.py            their arithmetic
pipeline.py         reading, computing, hashing and writing at once
folder.py           the output folder: locked, written whole, or left as it was
journal.py          what is done, for a run that resumes
summary.py          the manifest, and what is told at the end
verify.py           a converted model proved; differences.py: compared value by value
trial.py            how fast this machine converts
"""
