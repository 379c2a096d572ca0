"""Datasets, one file each: `videos(source, settings)` lists them, `truth(video)` reads what is known of one.

A catalog module has
    Settings                             a frozen dataclass of options, each with a default; `classes`, where it has it,
                                         are those to learn, in the order of the labels
    videos(source, settings)             -> list[records.VideoInfo], sorted, ids unique
    truth(video)                         -> a pyarrow table of schema `records.TRUTH`, or None where nothing is known
    CLASSES                              the class names, in the order of the labels; () where the files say them
and raises ValueError or FileNotFoundError with one sentence that says what was looked for.
"""
