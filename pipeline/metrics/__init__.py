"""Metrics: counts of one video that add up over a dataset, and the scores that follow from them; one file each."""
