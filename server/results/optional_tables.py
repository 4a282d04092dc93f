"""The tables that only some runs have: what clients shared, and how the exits do on users who took no part.

sharing.parquet   one row per round and client whose report was accepted, in runs that ask for exits
held_out.parquet    one row per round, held-out user, exit and stage; round 0 is the model that the run began with
"""

import pyarrow as pa

SHARING_SCHEMA = pa.schema(
    [
        pa.field("round", pa.int32(), nullable=False),
        pa.field("client_id", pa.string(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),  # "shared", "not permitted", "held back: ...", "refused: ..."
        pa.field("exits", pa.list_(pa.int32())),  # the exits that arrived whole
        pa.field("examples", pa.int64()),  # the weight in an average; null where nothing was shared
    ]
)

HELD_OUT_SCHEMA = pa.schema(
    [
        pa.field("round", pa.int32(), nullable=False),  # after which the exits were measured; 0 before the first
        pa.field("client_id", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),  # "ok", or why there are no figures: then all else is null
        pa.field("exit", pa.int32()),  # 0 .. M
        pa.field("stage", pa.string()),  # before: the global exits, after: the user's own, trained from them
        pa.field("accuracy", pa.float64()),  # [0, 1], of this exit alone on the user's test part
        pa.field("loss", pa.float64()),  # nats
        pa.field("exit_rate", pa.float64()),  # [0, 1], under the policy; null where none was chosen
        pa.field("macs", pa.int64()),
        pa.field("num_test", pa.int64()),
    ]
)

OPTIONAL_SCHEMAS = {"sharing": SHARING_SCHEMA, "held_out": HELD_OUT_SCHEMA}
