"""Metrics: counts of one video that add up over a dataset, and the scores that follow from them; one file each.

A family of metrics is a module with
FIELDS: names of its scores; NEEDS_IDS: whether truth must have identities;
OF_PAIRS: its `count` takes `Pairs` (boxes with identities, without what ignore regions excuse), else all rows of both
sides and a tolerance in pixels;
count(pairs) or count(truth, predicted, tolerance) -> Counts of one video and class;
scores(counts) -> {field: value}; JOINED: the counts that hold one number a box or track, which are not summed;
count_all(truth, predicted, groups, tolerance), in place of count where a family has it: the sides of all videos, by
video, and pairs of video and class -> the Counts of each pair; its scores(counts, whole) also takes the sum over
classes of the counts that are summed, and may leave out fields that mean nothing for this truth;
resampled(ranking, counts, whole, fields), where a family has it: its scores of one class for many weightings of the
videos at once (`rankings`, `pipeline.resampling`);
OVER_CLASSES: scores over classes are the `mean` of the classes' or follow from the `sum` of their counts.
"""
