"""How video becomes tracks.

A catalog names videos (`records.VideoInfo`); each is cut into clips (`ClipRef`), whose frames are decoded
(`video`), resized on the way, and shown to a network held by an actor (`detect`). What the network saw leaves it
as a few kB of rows: the `detections` table. `stitch` joins the tracklets of neighbouring clips, a linker
(`linkers/`) gives the boxes their identities, and the `tracks` table is written (`tables`). `metrics/` scores it
wherever there is truth. `flow` says all this in code, in a plain loop or on Ray.
"""
