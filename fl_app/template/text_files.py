"""The pyproject.toml and the README of a new app."""

PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "<<name>>"
version = "0.1.0"
description = "Early exits of a CNN of one's own, personalised on each user's device"
requires-python = ">=3.11"
license = "Apache-2.0"
dependencies = ["persephonee[simulation]"]

[tool.setuptools]
packages = ["<<package>>"]

[tool.flwr.app]
publisher = "<<name>>"

[tool.flwr.app.components]
serverapp = "<<package>>.server_app:app"
clientapp = "<<package>>.client_app:app"

# Every setting of persephonee is a key here; `persephonee simulate --help` and its docs say what there is.
[tool.flwr.app.config]
# the CNN: this machine allows its module, and devices allow it in their own configuration
backbone = "<<package>>.cnn:build"
sources = "<<package>>.cnn"
num-exits = 2
# the data: what `python -m <<package>>.users` wrote; a device names its own
dataset = "parquet"
data-path = <<data_path>>
user-column = "user"
label-column = "label"
# the global model is trained on the users that do not personalise; give `model` to take one that is there
model = ""
pretrain-epochs = 12
pretrain-patience = 12
pretrain-batch-size = 32
pretrain-learning-rate = 0.02
pretrain-personal-users = 4
pretrain-validation-fraction = 0.25
pretrain-calibration-users = 0
# the run; 0 takes all users that may personalise
clients = 4
rounds = 1
labels = "all"
schedule = "fast"
rule = "paper"
run-dir = <<run_dir>>
overwrite = false
resume = false
seed = 0
"""

README = """\
# <<name>>

A Flower app that cuts a CNN of its own into a multi-exit network, trains it on some users, and lets the others
personalise its early exits on their own samples. Two files are yours:

- `<<package>>/cnn.py`: the network;
- `<<package>>/users.py`: who has which images.

```sh
pip install -e .                                           # or have persephonee[simulation] installed
python -m <<package>>.users                                # writes users.parquet
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1      # or Flower installs torch anew for every run
flwr run . --stream --federation-config "num-supernodes=4 client-resources-num-cpus=1"
```

The report is `runs/first/report.html`. `flwr run` returns 0 whatever happens: `runs/first/status.json` says how it
ended. For another run, give another folder: `--run-config 'run-dir="/absolute/path"'`; any key of `pyproject.toml` can
be given there. Paths in `pyproject.toml` are whole paths of this machine: change them when you move the folder.

The same outside of Flower, in this folder:

```sh
PYTHONPATH=. persephonee pretrain --backbone <<package>>.cnn:build --sources <<package>>.cnn --num-exits 2 \\
    --dataset parquet --data-path users.parquet --user-column user --label-column label \\
    --personal-users 4 --validation-fraction 0.25 --calibration-users 0 \\
    --epochs 12 --patience 12 --batch-size 32 --learning-rate 0.02 --out model
PYTHONPATH=. persephonee personalise --model model --sources <<package>>.cnn --user user-05 --store stores/user-05 \\
    --dataset parquet --data-path users.parquet --user-column user --label-column label
```

`deploy/` holds a Compose file for a SuperLink and two SuperNodes with TLS.
"""

IGNORED = """\
__pycache__/
*.egg-info/
users.parquet
model/
runs/
stores/
deploy/federation/
deploy/keys/
deploy/users/
deploy/wheels/
"""
