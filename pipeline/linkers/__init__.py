"""Linkers: who is who, from stored rows alone; one file each.

A linker is a module with
NEEDS: the names of optional evidence (`records.EVIDENCE`) that it cannot do without;
Settings: a frozen dataclass; what some settings need besides, its property `needs` says;
link(frames, video, settings) -> (frames, tracks): of one video, its frames in order; the frames come back rescored, or
as they were.

As the video runs: `online` (ours), `sort`, `bytetrack`, `deepsort`, `tracklets` (SMOT's), `track_store`
(RetinaTrack's). With the whole video in hand: `offline` (ours), `tubes` (D&T's), `seq_nms`. The model's own identities:
`keep`.
"""
