"""The Compose file of a new app, its image, and how to use them. Checked for syntax by a test, and not run here."""

_SUPERNODE = """\
  supernode-<<number>>:
    <<: *supernode
    environment: *environment
    command:
      - flower-supernode
      - --root-certificates=/federation/ca.crt
      - --superlink=superlink:8443
      - --auth-supernode-private-key=/keys/<<user>>
      - --node-config
      - >-
        client-id="<<user>>" store="/state/store" dataset="parquet" data-path="/users/<<user>>.parquet"
        user-column="user" label-column="label" backbones="<<package>>.cnn"
    volumes:
      - ./federation/ca.crt:/federation/ca.crt:ro
      - ./keys/<<user>>:/keys/<<user>>:ro
      - ./users/<<user>>.parquet:/users/<<user>>.parquet:ro
      - supernode-<<number>>:/state
"""

_SUPERNODES = "\n".join(
    _SUPERNODE.replace("<<number>>", number).replace("<<user>>", user)
    for number, user in (("1", "user-05"), ("2", "user-07"))
)

COMPOSE = """\
# A SuperLink and two SuperNodes with TLS and node authentication. README.md beside this file says what to make first.
# Not run by its authors: the commands are those of docs/devices.md, which were tested over loopback.
name: <<name>>

x-supernode: &supernode
  build: .
  image: <<name>>
  depends_on: [superlink]
  restart: always
  user: "1000:1000"
  read_only: true
  tmpfs: [/tmp]
  cap_drop: [ALL]
  security_opt: ["no-new-privileges:true"]

x-environment: &environment
  FLWR_TELEMETRY_ENABLED: "0"
  FLWR_DISABLE_UPDATE_CHECK: "1"
  FLWR_HOME: /state/flower

services:
  superlink:
    build: .
    image: <<name>>
    restart: always
    user: "1000:1000"
    environment:
      <<: *environment
      FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION: "1"
    command:
      - flower-superlink
      - --ssl-ca-certfile=/federation/ca.crt
      - --ssl-certfile=/federation/server.crt
      - --ssl-keyfile=/federation/server.key
      - --enable-supernode-auth
      - --disable-runtime-dependency-installation
      - --host=0.0.0.0
      - --port=8443
      - --database=/state/superlink.db
    # on this machine alone: whoever reaches the port can start a run on the devices
    ports: ["127.0.0.1:8443:8443"]
    volumes:
      - ./federation:/federation:ro
      - ./models:/models:ro
      - ./runs:/runs
      - superlink:/state

<<supernodes>>
volumes:
  superlink:
  supernode-1:
  supernode-2:
""".replace("<<supernodes>>", _SUPERNODES)

DOCKERFILE = """\
FROM python:3.12-slim
# the index of PyTorch's CPU builds, which PyTorch's installation page names; empty takes the default builds
ARG TORCH_INDEX=""
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision
# persephonee's wheel, as `make build` or pip wheel leaves it
COPY wheels /wheels
RUN pip install --no-cache-dir --find-links /wheels "persephonee[flower]"
RUN useradd --uid 1000 persephonee && mkdir /state /runs && chown persephonee /state /runs
WORKDIR /state
"""

README = """\
# <<name>> with Compose

A SuperLink and two SuperNodes, each with its user's data, on one machine, with TLS and node authentication. The file is
checked for syntax; it has not been run by its authors. In a federation of real devices each SuperNode runs on its own
machine, and `persephonee device enrol` makes what it needs.

In this folder:

```sh
mkdir -p wheels keys users models runs                     # persephonee's wheel goes into wheels/
persephonee server init --host superlink --host 127.0.0.1 --listen 0.0.0.0 --out federation
for user in user-05 user-07; do ssh-keygen -q -t ecdsa -b 384 -N "" -f keys/$user; done
# users/user-05.parquet and users/user-07.parquet: the rows of these users; models/first: a model that pretrain wrote
docker compose build --build-arg TORCH_INDEX="<the index of the CPU builds>"
docker compose up -d
export FLWR_HOME=$PWD/federation/flwr
# in federation/flwr/config.toml, address is superlink:8443: outside of the containers it is 127.0.0.1:8443
for user in user-05 user-07; do flwr supernode register keys/$user.pub devices --name $user; done
flwr run .. devices --stream --run-config 'model="/models/first" run-dir="/runs/first" clients=2'
```

The containers' user has the id 1000, who has to own `federation`, `keys` and `runs`. Whoever reaches port 8443 can
start a run on the SuperNodes, so that the Compose file binds it to this machine.
"""
