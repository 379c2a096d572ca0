"""Linkers: `link(frames, video, settings) -> (frames rescored, tracks)` over stored rows; one file each."""
