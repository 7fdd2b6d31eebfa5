"""What the hot paths cost, each against the raw limit that is found in the same run.

``python -m benchmarks [NAME ...]`` runs all of them or those named. Times are CPU seconds of the process where that is
what counts, and medians of several rounds; ratios compare two things measured in turns within one run.
"""
