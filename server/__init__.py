"""The global model: pretraining, the run folder, the tables and the report page. Runs on the server."""
