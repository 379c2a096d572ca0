"""The networks, one method a file; they know tensors only, nothing of Ray, catalogs or tables.

What a file of this folder holds (`tests/models/test_models.py` asks it of all of them):

Settings    a frozen dataclass; ValueError for values that make no sense
GIVES       the evidence beyond boxes, scores and labels that its frames have; Settings whose frames have less say so
            in a property `gives`
LINKER      the linker that makes tracks of its frames where nobody says which
build       (Settings) -> Model, in eval mode; ValueError or FileNotFoundError where it cannot be

and what a Model, a `nn.Module`, has:

settings                   what it was built with
classes, resize            the names of the labels; how large it wants its frames, as keywords of `records.Resize`;
                           weights that say another size have their way, see `pipeline.config.resize_of`
frames_before, frames_after  how many frames around a frame its rows depend on; all those before, if it remembers, are 0
network, extras            the modules whose tensors a weight file holds: those of `network` by their own names, those
                           of each of `extras` under its name; `extras` may be absent from published weights
weights, untrained         what was loaded, as `parts.weights.Report` (None: nothing); the parts in use that nothing has
                           trained
detect(clips, memories)    clips: uint8 (T, 3, H, W) on any device, in order; memories: what the last call gave back for
                           the clip, None at its start. Gives for each clip the frames that are ready, oldest first, and
                           its memory: picklable, on the CPU. A model with frames_after gives frames late, when it has
                           seen what they wait for; any other gives as many as it was given.
finish(memories)           only with frames_after: for each clip, the frames that still wait.
losses(clips, targets)     a dict of scalars; targets: for each frame of each clip boxes (M, 4), labels (M,), track_ids
                           (M,), -1 where unknown, and ignore (M,)

A frame is a dict of CPU tensors: boxes float32 (N, 4) xyxy in the pixels given, scores (N,), labels int64 (N,), and
optionally class_scores (N, C + 1), background first, embeddings (N, E), tracklet_id int64 (N,), -1 for none, tracked
bool (N,), and moves: a dict of start, end (M, 4), scores (M,), box_id int64 (M,), the row of the box that moves, -1 for
none, and stride, an int.
"""
