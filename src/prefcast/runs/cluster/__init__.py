"""The same forecaster in Ray actors (extra `ray`): many processors, many machines.

The local engine's code decides what is scored and what is written; Ray places and starts the actors. This package knows
nothing of the command line. Importing it does not load Ray.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

from prefcast.errors import MissingExtraError, UsageError, WorkerError, excerpt
from prefcast.scorers.embedded.encoder import processors

__all__ = ["Cluster", "Pool", "connected", "require_ray"]

# Ray's own tools read the address of a cluster from this variable too.
_ADDRESS = "RAY_ADDRESS"
_ANSWER_SECONDS = 10


@dataclass(frozen=True)
class Cluster:
    """How many actors, on which cluster, and what each actor gets.

    `address` is a running cluster (host:port, auto); None starts one on this machine for this run. `actors` None means as
    many as the cluster has room for now. An actor computes on `cpus` threads and sees `gpus` GPUs. Raises UsageError.
    """

    address: str | None = None
    actors: int | None = None
    cpus: int = 1
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise UsageError(f"--gpus-per-actor: {self.gpus:g} is neither a part of one GPU nor a whole number of GPUs")
        if self.address is not None and self.address.startswith("ray://"):
            raise UsageError(
                f"--ray-address: {excerpt(self.address)} is the address of a Ray Client; run the command on a "
                "machine of the cluster (as ray job submit does) and give HOST:PORT, or auto"
            )


@dataclass(frozen=True)
class Pool:
    """A connected cluster, the number of its actors, and the node of this process."""

    cluster: Cluster
    actors: int
    node: str

    def map(self, data: Any, actor: type, *arguments: Any) -> Any:
        """The Ray dataset `data` with each row mapped by an actor."""
        import ray

        return data.map_batches(
            actor,
            batch_size=1,
            batch_format="pyarrow",
            # With a long queue for each actor, other actors would be idle at the end.
            compute=ray.data.ActorPoolStrategy(size=self.actors, max_tasks_in_flight_per_actor=2),
            num_cpus=self.cluster.cpus,
            num_gpus=self.cluster.gpus or None,
            fn_constructor_args=arguments,
        )


def require_ray() -> None:
    """MissingExtraError if Ray is not installed."""
    if find_spec("ray") is None:
        raise MissingExtraError("ray", "ray")


@contextmanager
def connected(cluster: Cluster) -> Iterator[Pool]:
    """Within it, this process is connected to the cluster. A cluster that was started for it ends with it.

    Ray sends no usage statistics, starts no dashboard, and logs to its own files only. Raises
    MissingExtraError, UsageError and WorkerError.
    """
    require_ray()
    # Ray reads these when it is imported; values that a person has set stay.
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray
    import ray.data

    address = cluster.address or os.environ.get(_ADDRESS) or "local"
    _check_listening(address)
    own: dict[str, Any] = {}
    if address == "local":
        # The cluster is as large as the run asks: Ray would wait without end for an actor that has no room.
        own = {"num_cpus": max(processors(), (cluster.actors or 1) * cluster.cpus), "include_dashboard": False}
    with _aside():
        try:
            with _own_sigterm():
                ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL, **own)
        except Exception as error:  # Ray raises plain exceptions here
            ray.shutdown()
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            if "AuthToken" in str(error.__cause__):
                said += "; the cluster asks for its token (set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN)"
            where = "a cluster on this machine" if own else f"the cluster at {excerpt(address)}"
            raise WorkerError(f"Ray: {where} cannot be reached: {said[:300]}") from None
        try:
            _keep_quiet()
            yield Pool(cluster, _actors(cluster, bool(own)), ray.get_runtime_context().get_node_id())
        finally:
            ray.shutdown()


_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray would hold repeated lines back and print them at the end.
    "RAY_DEDUP_LOGS": "0",
    # Ray would give its workers a low priority; on this machine they are the run itself.
    "RAY_worker_niceness": "0",
    # Without GPUs of its own an actor sees none.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    # After the end of a run, a thread that still asks would make Ray start a new cluster.
    "RAY_ENABLE_AUTO_CONNECT": "0",
}


def _keep_quiet() -> None:
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # A row is a whole part of the run, so each row is a block of its own, which Ray passes on at once.
    context.target_max_block_size = 1
    for name in ("ray", "ray.data"):
        log = logging.getLogger(name)
        for handler in [each for each in log.handlers if hasattr(each, "stream") or "Plain" in type(each).__name__]:
            log.removeHandler(handler)


def _check_listening(address: str) -> None:
    """Raise WorkerError if nothing answers at host:port; Ray itself would try for many minutes."""
    host, colon, port = address.rpartition(":")
    if not colon:
        return
    if not host or not port.isdigit():
        raise UsageError(
            f"--ray-address: {excerpt(address)} is not of the form HOST:PORT; auto finds a cluster on this machine"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise WorkerError(f"Ray: the cluster at {excerpt(address)} cannot be reached: {why}") from None


@contextmanager
def _aside() -> Iterator[None]:
    """Within it, nothing that Ray prints is shown: all of it is in Ray's log files too. Ray's native code prints to standard
    error, and its threads to standard output. This program can still write to standard error."""
    python = sys.stderr
    if python is not None:
        python.flush()
    own, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        if python is not None and _is_stderr(python):
            sys.stderr = os.fdopen(own, "w", encoding=python.encoding, errors=python.errors, closefd=False, buffering=1)
        with (
            Path(os.devnull).open("w", encoding="utf-8") as sink,
            redirect_stdout(sink),
            warnings.catch_warnings(),
        ):
            # Ray's advice on the code that calls it; the user did not write that code.
            warnings.filterwarnings("ignore", module=r"ray\.")
            yield
    finally:
        if sys.stderr is not None:
            sys.stderr.flush()
        sys.stderr = python
        os.dup2(own, 2)
        os.close(own)


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keeps the handler of SIGTERM, which Ray replaces when it starts; a signal during the start reaches our handler too."""
    ours = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as ended:
        if ended.code in (1, signal.SIGTERM) and callable(ours):
            ours(signal.SIGTERM, None)
        raise
    finally:
        if ours is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ours)


def _is_stderr(stream: TextIO) -> bool:
    try:
        return stream.fileno() == 2
    except (OSError, ValueError):
        return False  # a stream in memory, as in tests


def _actors(cluster: Cluster, own: bool) -> int:
    """The number of actors. Raises UsageError if our own cluster could never start one."""
    import ray

    there = ray.cluster_resources()
    cpus, gpus = there.get("CPU", 0.0), there.get("GPU", 0.0)
    if own and cluster.gpus > gpus:
        raise UsageError(f"--gpus-per-actor {cluster.gpus:g}: Ray sees {gpus:g} GPUs on this machine")
    if own and cluster.gpus and (cluster.actors or 1) * cluster.gpus > gpus:
        raise UsageError(
            f"--actors {cluster.actors} --gpus-per-actor {cluster.gpus:g}: Ray sees {gpus:g} GPUs on this machine"
        )
    if cluster.actors is not None:
        return cluster.actors
    room = min(cpus / cluster.cpus, gpus / cluster.gpus if cluster.gpus else math.inf)
    return max(1, int(room))
