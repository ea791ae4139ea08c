"""The study that a search keeps: Optuna's NSGA-II over a journal file, or over a database that many workers share.

A study is bound to what its errors depend on (model, recipe, scoring, genes, budget): a search of anything else is
refused, so that no two kinds of numbers are ever compared.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ditquant import distributed
from ditquant.atomic import clear_errors
from ditquant.errors import DitQuantError, first_line

POPULATION, MUTATION = 50, 0.1
HEARTBEAT_S, GRACE_S = 30, 120  # a worker of a database that says nothing for so long is taken for dead
_ATTEMPTS = 5  # workers that start together make the tables of a new database at once


def open_study(storage: str | Path, name: str, run: Mapping[str, Any], seed: int = 0) -> Any:
    """Return the study `name` in a journal file or at a database URL, made if it is not there.

    Raises:
        DitQuantError: Optuna is missing, the storage cannot be reached or written, or the study is of another run.
    """
    optuna = _optuna()
    with _clear_storage_errors(storage):
        study = optuna.create_study(
            storage=_storage(storage),
            study_name=name,
            directions=["minimize", "minimize"],
            load_if_exists=True,
        )
        mine = digests(run)
        theirs = study.user_attrs.get("run")
        if theirs is None:
            study.set_user_attr("run", mine)
        elif theirs != mine:
            other = ", ".join(key for key in mine if theirs.get(key) != mine[key]) or "version"
            raise DitQuantError(
                f"study {name!r} in {_shown(storage)} is of another search (other {other}). "
                "Give the same arguments, another --study, or another place."
            )
        shared = _is_url(storage) or distributed.count() > 1
        # workers of one study, and a search that goes on, must not draw the same candidates again
        entropy = [seed, len(study.trials), *([os.getpid(), time.time_ns()] if shared else [])]
        study.sampler = optuna.samplers.NSGAIISampler(
            population_size=POPULATION,
            mutation_prob=MUTATION,
            crossover=optuna.samplers.nsgaii.UniformCrossover(),
            seed=int(np.random.SeedSequence(entropy).generate_state(1)[0]),
        )
    return study


def digests(run: Mapping[str, Any]) -> dict[str, str]:
    """Return a hash of every part of what a study is bound to."""
    texts = {key: json.dumps(value, sort_keys=True, default=str) for key, value in run.items()}
    return {key: hashlib.sha256(text.encode()).hexdigest()[:16] for key, text in texts.items()}


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise DitQuantError("searching needs Optuna. Install it with: pip install 'ditquant[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _storage(storage: str | Path) -> Any:
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if not _is_url(storage):
        Path(storage).parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(storage)))
    from sqlalchemy.exc import IntegrityError, ProgrammingError

    for attempt in range(_ATTEMPTS):
        try:
            return RDBStorage(str(storage), heartbeat_interval=HEARTBEAT_S, grace_period=GRACE_S)
        except (IntegrityError, ProgrammingError):
            if attempt == _ATTEMPTS - 1:
                raise
            time.sleep(1 + attempt)
    raise AssertionError("unreachable")


def _is_url(storage: str | Path) -> bool:
    return "://" in str(storage)


def _shown(storage: str | Path) -> str:
    """Return a storage without the password that a URL may hold."""
    text = str(storage)
    if not _is_url(text):
        return text
    scheme, _, rest = text.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


@contextlib.contextmanager
def _clear_storage_errors(storage: str | Path) -> Iterator[None]:
    """Say in one line why a storage cannot be used."""
    if not _is_url(storage):
        with clear_errors(Path(storage)):
            yield
        return
    try:
        yield
    except DitQuantError:
        raise
    except Exception as error:  # every database brings errors of its own
        raise DitQuantError(
            f"the storage {_shown(storage)} cannot be used: {first_line(error)}. "
            "Check the address, the permissions and that its driver is installed, or leave --storage out."
        ) from error
