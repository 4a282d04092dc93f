"""The verbs that look at what runs and models are worth: compare, evaluate, predict; and the option `--track`."""
