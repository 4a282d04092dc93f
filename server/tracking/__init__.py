"""Runs in the tracker that a team uses: TensorBoard or MLflow, with local files and without an account."""
