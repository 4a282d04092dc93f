"""The wire records, key by key: what a message may hold; see wire.py for who sends which."""

from collections.abc import Mapping

from persephonee.fl_app.wire.limits import CLASSES_CHARACTERS, ID_CHARACTERS, SPEC_CHARACTERS, WORDS_CHARACTERS
from persephonee.fl_app.wire.value_kinds import Kind, Number, PerExit, Text, Truth, Whole

STAGES = ("before", "after")

FINGERPRINT = Text(length=64)

REQUEST: Mapping[str, Kind] = {
    "run": Text(length=32),  # names the run, also after the server was restarted; empty in a status query
    "round": Whole(),  # from 1; 0 in a status query, and for the initial model in an evaluation
    "personalise": Truth(),  # in an evaluation: whether to personalise first, for the figures after
    "model": FINGERPRINT,  # of the global model that the run began with
    "graphs": FINGERPRINT,  # of the graphs that it carries; empty where it carries none
    "code": FINGERPRINT,  # of the code that the server runs
    "user": Text(length=ID_CHARACTERS),  # whose data a simulated node plays; empty to a device, which knows its own
}
SPEC: Mapping[str, Kind] = {"json": Text(length=SPEC_CHARACTERS)}
WITH_A_MODEL: Mapping[str, Mapping[str, Kind]] = {
    "classes": {"names": Text(length=CLASSES_CHARACTERS)},  # of the model's classes, a JSON list
    "calibration": {"json": Text(length=CLASSES_CHARACTERS)},  # of its exits, as multi_exit/exit_calibration.py has it
    "graphs": {"json": Text(length=CLASSES_CHARACTERS)},  # of the model, as multi_exit/graphs/description.py has them
    "risk-pools": {"json": Text(length=CLASSES_CHARACTERS)},  # of held-out users, as clients' risk_pools.py has them
}

STATUS: Mapping[str, Kind] = {
    "client-id": Text(length=ID_CHARACTERS),  # from the node's configuration; empty on a simulated node, which has none
    "partition-id": Whole(low=-1),  # of a simulated node; -1 on a device
    "code": FINGERPRINT,  # of the code that this client runs
    "model-held": Truth(),  # whether the client has the model that the request names
    "sharing-allowed": Truth(),  # whether the device's owner allows exits to leave it
    "needs-graphs": Truth(),  # whether the client has no PyTorch, and takes a model with its graphs
}

REPORT: Mapping[str, Kind] = {
    "client-id": Text(length=ID_CHARACTERS),
    "status": Text(length=WORDS_CHARACTERS),  # "ok", or one of STATUS_KINDS, a colon and a sentence
    "labels": Text(length=16),  # "all", "none" or the labelled fraction; empty where nothing was trained
    "rule": Text(length=64),  # what chose the policy, as policy_choice.py says it; empty without figures
    "sharing": Text(length=WORDS_CHARACTERS),  # one of SHARING_KINDS, where it needs one with a colon and a sentence
}

EXIT_FIELDS: Mapping[str, Kind] = {
    "accuracy": PerExit(),  # of this exit alone on the user's test part
    "loss": PerExit(high=1e300),  # nats
    "exit_rate": PerExit(),  # fraction of the test samples that leave here
    "kept": PerExit(),  # 1, or 0 once pruned
    "macs": PerExit(high=1e15),  # per sample, to leave here
}

METRICS: Mapping[str, Kind] = {
    "round": Whole(),
    "num_train": Whole(),
    "num_calibration": Whole(),
    "num_test": Whole(),
    "threshold": Number(),
    "accuracy_original": Number(),
    "accuracy_before": Number(),
    "accuracy_after": Number(),
    "mean_macs": Number(high=1e15),
    "mean_macs_before": Number(high=1e15),
    "original_macs": Whole(high=10**15),
    "seconds_personalise": Number(high=1e9),
    "rolled_back": PerExit(),  # 1 where the earlier exit stayed, else 0
    **{f"{stage}.{name}": kind for stage in STAGES for name, kind in EXIT_FIELDS.items()},
}
