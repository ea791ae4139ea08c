"""Several processes of one command, of torchrun or `accelerate launch`: who does what, and how they end together.

Ranks exchange plain objects over gloo. The first one writes and prints; an error of one of them ends them all.
Nothing is shared before `start` is called, so that a program with ranks of its own may call ditquant in any of them.
"""

import contextlib
import io
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

from ditquant.errors import DitQuantError, first_line

T = TypeVar("T")
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TIMEOUT_VARIABLE, TIMEOUT_S = "DITQUANT_RANK_TIMEOUT_S", 1800
_GRACE_S = 2.0  # for the first rank to say the same before another one does


class RankEnded(Exception):
    """Another rank has ended, or has not answered in time; what it had to say it has said itself."""


@dataclass(frozen=True)
class _Ranks:
    """This process among the others; `store` is what all can read."""

    rank: int
    count: int
    store: Any
    timeout: timedelta
    streams: tuple[Any, Any]


_here: _Ranks | None = None


def asked() -> bool:
    """Say whether a launcher has started several processes of this command."""
    return all(name in os.environ for name in VARIABLES) and os.environ["WORLD_SIZE"] != "1"


def start() -> None:
    """Join the other ranks; all but the first fall silent.

    Raises:
        DitQuantError: they cannot be reached, or a waiting time that is no number.
    """
    global _here
    import torch.distributed as dist

    timeout = timedelta(seconds=_seconds())
    try:
        store, rank, count = next(dist.rendezvous("env://", timeout=timeout))
        own = dist.PrefixStore("gloo", store)
        dist.init_process_group("gloo", store=own, rank=rank, world_size=count, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        raise DitQuantError(f"the other ranks cannot be reached ({first_line(error)}). Check MASTER_ADDR.") from None
    _here = _Ranks(rank, count, dist.PrefixStore("ditquant", store), timeout, (sys.stdout, sys.stderr))
    if rank:
        sys.stdout, sys.stderr = io.StringIO(), io.StringIO()


def stop() -> None:
    """Leave the others; they are not waited for."""
    global _here
    if _here is not None:
        import torch.distributed as dist

        (sys.stdout, sys.stderr), _here = _here.streams, None
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def rank() -> int:
    """Return this process's number, from 0."""
    return 0 if _here is None else _here.rank


def count() -> int:
    """Return the number of processes."""
    return 1 if _here is None else _here.count


def is_main() -> bool:
    """Say whether this process writes and prints."""
    return rank() == 0


def own_device() -> str:
    """Return the GPU of this process: ranks of a machine take turns; without ranks it is torch's current one."""
    import torch

    local = int(os.environ.get("LOCAL_RANK", rank()))
    return "cuda" if _here is None else f"cuda:{local % torch.cuda.device_count()}"


def mine(items: Sequence[T]) -> Sequence[T]:
    """Return every `count`-th item: what this rank does."""
    return items[rank() :: count()]


def gather(value: T) -> list[T]:
    """Return every rank's value, in the order of the ranks, on all of them; waits until all have one.

    Raises:
        RankEnded: a rank has ended, or has been waited for longer than allowed.
    """
    if _here is None:
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * _here.count
    try:
        dist.all_gather_object(found, value)
    except RuntimeError as error:
        raise RankEnded(first_line(error)) from error
    return found


def from_main(value: T) -> T:
    """Return the first rank's value on all of them."""
    return gather(value if is_main() else None)[0]  # type: ignore[return-value]


@contextlib.contextmanager
def ranks() -> Iterator[None]:
    """Run a command in as many processes as a launcher has started; what one of them raises ends all of them."""
    if not asked() or _here is not None:
        yield
        return
    start()
    try:
        yield
    except RankEnded:
        _end_after_others()
    finally:
        stop()


def say_error(line: str) -> None:
    """Print an error once: the first rank its own, another one only what the first does not say too."""
    if _here is None:
        print(line, file=sys.stderr)
        return
    with contextlib.suppress(RuntimeError):
        _here.store.set(f"error {_here.rank}", line)
    if _here.rank:
        if _said_by_main(_here.store):
            return
        line = f"{line} (rank {_here.rank} of {_here.count})"
    print(line, file=_here.streams[1], flush=True)
    if not _here.rank:
        time.sleep(_GRACE_S)  # the store that the others look into may end with this process


def _said_by_main(store: Any) -> bool:
    """Wait a little for the first rank to report an error."""
    until = time.monotonic() + _GRACE_S
    with contextlib.suppress(RuntimeError):
        while time.monotonic() < until:
            if store.check(["error 0"]):
                return True
            time.sleep(0.05)
    return False


def _end_after_others() -> NoReturn:
    """End with the code of an error; say so where no rank has said why."""
    assert _here is not None
    time.sleep(_GRACE_S * 2 * (_here.rank > 0))  # so that the first one speaks, and once
    keys = [f"error {other}" for other in range(_here.count)]
    with contextlib.suppress(RuntimeError):
        if not any(_here.store.check([key]) for key in keys):
            seconds = f"{_here.timeout.total_seconds():g} s, which {TIMEOUT_VARIABLE} sets"
            say_error(f"error: a rank has crashed, or has not answered for {seconds}. See what it printed.")
    sys.exit(2)


def _seconds() -> float:
    text = os.environ.get(TIMEOUT_VARIABLE, str(TIMEOUT_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e7:
        raise DitQuantError(f"{TIMEOUT_VARIABLE}={text!r} is not allowed. Set a positive number of seconds.")
    return seconds
