"""Training: labelled videos and stills in, a network's weights out.

settings -> labelled (a catalog's videos with their truth) -> frames (their pixels, decoded once or when asked for)
-> sampling (which frames are in batch n) -> loading (batches, ahead of time) -> loop (the steps; `history` of them and
`checkpoints` on the way) -> the fitted network. `work` is what one worker does of it, and `start` begins it: in this
process, or on the workers of Ray Train.

Batch n is a function of the seed and of n alone, and so is all chance in step n. Hence a training that was stopped
goes on as if it had not been, and workers share a batch without a word between them.
"""
