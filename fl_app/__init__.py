"""The Flower app: ServerApp, ClientApp, strategy, wire records, simulation and command line; the only users of flwr."""
