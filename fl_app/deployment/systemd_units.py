"""The systemd units of a SuperLink and of a SuperNode.

Both start again whenever they end, after 15 s: a SuperNode that crashed and comes back within a minute is told that it
is still connected, ends, and does not try again by itself.

What a run does on a device is what the app says that came with it. The units therefore give it no more of the machine
than it needs: no privileges, a file system that it can only read, apart from its own folders.
"""

import getpass
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from persephonee.fl_app.errors import AppError

RESTART_SECONDS = 15

_MEMORY = """\
# a round that needs too much is slowed down, and ended before the board itself stands still
MemoryHigh=75%
MemoryMax=90%
"""

_UNIT = """\
[Unit]
Description={description}
Wants=network-online.target
After=network-online.target
# never give up
StartLimitIntervalSec=0

[Service]
User={user}
WorkingDirectory={directory}
{environment}
ExecStart={command}
Restart=always
RestartSec={restart}
# the parts that Flower starts end with it
KillMode=control-group
TimeoutStopSec=20
NoNewPrivileges=true
PrivateTmp=true
{protection}
[Install]
WantedBy=multi-user.target
"""


def supernode_unit(words: Sequence[str], *, directory: Path, writable: Sequence[Path]) -> str:
    """Return the unit of a SuperNode that may write to the given folders only.

    Raises:
        AppError: a path holds a character that a unit cannot.
    """
    paths = " ".join(quoted(str(path)) for path in writable)
    return _unit(
        "PersEPhonEE device (Flower SuperNode)",
        words,
        directory,
        {**_flower(directory), "XDG_CACHE_HOME": str(writable[0] / "cache")},
        f"ProtectSystem=strict\nProtectHome=read-only\nReadWritePaths={paths}\n{_MEMORY}",
    )


def superlink_unit(words: Sequence[str], *, directory: Path) -> str:
    """Return the unit of a SuperLink, whose ServerApp writes run folders where the run says.

    Raises:
        AppError: a path holds a character that a unit cannot.
    """
    environment = {**_flower(directory), "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1"}
    return _unit("PersEPhonEE server (Flower SuperLink)", words, directory, environment, "ProtectSystem=full\n")


def quoted(word: str) -> str:
    """Return a word as it must stand in a unit: in quotes where it needs them, specifiers and variables escaped.

    Raises:
        AppError: it holds a line break or another control character.
    """
    if not word.isprintable():
        raise AppError(f"{word!r} holds a control character, which a systemd unit cannot; choose another path.")
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"' if not word or set(word) & set(" \t'\"\\;") else escaped


def _unit(
    description: str, words: Sequence[str], directory: Path, environment: Mapping[str, str], protection: str
) -> str:
    # `$` means a variable in commands, and in no other line
    command = " ".join(quoted(word).replace("$", "$$") for word in words)
    lines = "\n".join(f"Environment={quoted(f'{name}={value}')}" for name, value in environment.items())
    return _UNIT.format(
        description=description,
        user=os.environ.get("SUDO_USER") or getpass.getuser(),
        # a path that is taken as it stands, quotes included
        directory=str(directory).replace("%", "%%"),
        environment=lines,
        command=command,
        restart=RESTART_SECONDS,
        protection=protection,
    )


def _flower(directory: Path) -> dict[str, str]:
    programs = Path(sys.executable).parent
    return {
        "FLWR_HOME": str(directory / "flower"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PYTHONUNBUFFERED": "1",
        # Flower starts its other programs by name
        "PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin",
    }
