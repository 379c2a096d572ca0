"""Metrics: counts of one video that add up over a dataset, and the scores that follow from them; one file each.

A family of metrics is a module with
FIELDS: names of its scores; NEEDS_IDS: whether truth must have identities;
OF_PAIRS: its `count` takes `Pairs` (boxes with identities, without what ignore regions excuse), else all rows of both
sides and a tolerance in pixels;
count(pairs) or count(truth, predicted, tolerance) -> Counts of one video and class;
scores(counts) -> {field: value}; JOINED: the counts that hold one number a box or track, which are not summed;
OVER_CLASSES: scores over classes are the `mean` of the classes' or follow from the `sum` of their counts.
"""
