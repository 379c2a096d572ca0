"""The tables: their Arrow schemas, and how records become rows and rows records again."""

from __future__ import annotations

import pyarrow as pa

SCHEMA_VERSION = 1

_NAME = pa.dictionary(pa.int32(), pa.string())
_BOX = pa.list_(pa.float32(), 4)

VIDEOS = pa.schema(
    {
        "video_id": pa.string(),
        "catalog": pa.string(),
        "uri": pa.string(),
        "bytes": pa.int64(),
        "codec": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "rotation": pa.int16(),
        "fps": pa.float64(),
        "is_vfr": pa.bool_(),
        "frames_declared": pa.int32(),
        "frames_decoded": pa.int32(),
        "duration_s": pa.float64(),
        "status": pa.string(),  # ok | partial | failed
        "stage": pa.string(),
        "error": pa.string(),
        "boxes": pa.int64(),
        "tracks": pa.int64(),
        "decode_s": pa.float64(),
        "detect_s": pa.float64(),
        "link_s": pa.float64(),
    }
)

DETECTIONS = pa.schema(
    {
        "video_id": _NAME,
        "clip_id": _NAME,
        "frame_index": pa.int32(),
        "owned": pa.bool_(),
        "timestamp_s": pa.float64(),
        "boxes": pa.list_(_BOX),
        "scores": pa.list_(pa.float32()),
        "labels": pa.list_(pa.int16()),
        "box_id": pa.list_(pa.int32()),
        "class_scores": pa.list_(pa.list_(pa.float32())),
        "embeddings": pa.list_(pa.list_(pa.float16())),
        "tracklet_id": pa.list_(pa.int32()),
        "tracked": pa.list_(pa.bool_()),
        "moves": pa.struct(
            {
                "start": pa.list_(_BOX),
                "end": pa.list_(_BOX),
                "scores": pa.list_(pa.float32()),
                "box_id": pa.list_(pa.int32()),
                "stride": pa.int32(),
            }
        ),
    }
)

TRACKS = pa.schema(
    {
        "video_id": _NAME,
        "frame_index": pa.int32(),
        "timestamp_s": pa.float64(),
        "track_id": pa.int32(),  # null where untracked
        "class_id": pa.int16(),
        "class_name": _NAME,
        "score": pa.float32(),
        "raw_score": pa.float32(),
        "track_score": pa.float32(),
        "x1": pa.float32(),
        "y1": pa.float32(),
        "x2": pa.float32(),
        "y2": pa.float32(),
        "origin": _NAME,
    }
)

TRUTH = pa.schema(
    {
        "video_id": _NAME,
        "frame_index": pa.int32(),
        "track_id": pa.int32(),  # null where the source has no identities
        "class_id": pa.int16(),
        "class_name": _NAME,
        "x1": pa.float32(),
        "y1": pa.float32(),
        "x2": pa.float32(),
        "y2": pa.float32(),
        "ignore": pa.bool_(),
        "motion_iou": pa.float32(),
        "flags": pa.list_(pa.string()),
    }
)

SCORES = pa.schema(
    {
        "catalog": pa.string(),
        "video_id": pa.string(),  # null: all videos together
        "class_name": pa.string(),  # null: all classes together
        "metric": pa.string(),
        "value": pa.float64(),
        "counts": pa.map_(pa.string(), pa.list_(pa.float64())),  # what adds up; on the first metric of a family
    }
)
