"""The ClientApp of the plain Flower app."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from persephonee.benchmarks.simulation.plain_flower.task import load_data, load_model, read_settings, test, train

app = ClientApp()


@app.train()
def train_client(message: Message, context: Context) -> Message:
    """Train the exits on this client's samples and test them."""
    path = str(context.run_config["settings"])
    settings = read_settings(path)
    network = load_model(settings.model, settings.sources)
    network.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    user = settings.users[int(context.node_config["partition-id"])]
    train_loader, test_loader = load_data(path, user)
    train(network, train_loader, settings)
    accuracies = test(network, test_loader)
    tested = len(test_loader.dataset)  # type: ignore[arg-type]
    metrics = MetricRecord({"num-examples": tested, "accuracy": accuracies})
    return Message(
        RecordDict({"arrays": ArrayRecord(network.heads.state_dict()), "metrics": metrics}), reply_to=message
    )
