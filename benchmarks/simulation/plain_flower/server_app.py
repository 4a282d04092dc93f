"""The ServerApp of the plain Flower app: one round of FedAvg over all clients."""

import json
from pathlib import Path

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from persephonee.benchmarks.simulation.plain_flower.task import load_model, read_settings

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the round, and write the accuracy of each exit."""
    settings = read_settings(str(context.run_config["settings"]))
    network = load_model(settings.model, settings.sources)
    clients = len(settings.users)
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
    result = strategy.start(grid=grid, initial_arrays=ArrayRecord(network.state_dict()), num_rounds=1)
    metrics = result.train_metrics_clientapp[1]
    Path(str(context.run_config["result"])).write_text(json.dumps({"accuracies": metrics["accuracy"]}))
