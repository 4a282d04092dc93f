"""Run folders of a few users whose numbers are made by hand."""

import json

from persephonee.server.results.run_folder import RunFolder

CONFIG = {"dataset": "parquet", "seed": 0, "epochs": 10, "network": json.dumps({"num_classes": 2}), "versions": {}}
ORIGINAL = {"a": 0.5, "b": 0.7, "c": 0.9, "d": 0.6}


def write_run(path, accuracies, *, macs=50.0, num_test=10, **config):
    """A run of one exit beside the last one; the original network has 100 MACs."""
    folder = RunFolder.create(path, {**CONFIG, **config})
    clients = [
        {
            "round": 1,
            "client_id": user,
            "status": "ok",
            "num_test": num_test,
            "accuracy_original": ORIGINAL[user],
            "accuracy_before": 0.4,
            "accuracy_after": accuracy,
            "mean_macs": macs,
            "original_macs": 100,
        }
        for user, accuracy in accuracies.items()
    ]
    exits = [
        {"round": 1, "client_id": user, "exit": number, "stage": stage, "accuracy": value, "exit_rate": 0.5}
        for user, accuracy in accuracies.items()
        for number, value in ((0, accuracy), (1, ORIGINAL[user]))
        for stage in ("before", "after")
    ]
    clients.append({"round": 1, "client_id": "z", "status": "too small: 3 samples, 20 are needed"})
    folder.append_round(exits, clients, {"round": 1, "replies": len(clients), "failures": 0})
    return folder
