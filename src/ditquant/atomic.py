"""Write beside the target, then rename: a target is either complete or not there."""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from ditquant.errors import DitQuantError

try:
    import fcntl
except ImportError:  # Windows: the leftovers of killed runs stay until they are deleted by hand
    fcntl = None

_USERS_PROBLEM = {
    errno.ENOSPC: "Free some space or choose another place.",
    errno.EDQUOT: "Free some space or choose another place.",
    errno.EACCES: "Change the permission or choose another place.",
    errno.EPERM: "Change the permission or choose another place.",
    errno.EROFS: "Choose another place.",
    errno.ENOTDIR: "Choose another place.",
    errno.EEXIST: "Choose another place.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
}


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary folder that becomes `path` when the block ends, and vanishes when it raises.

    An old folder is removed only after the new one stands in its place.

    Raises:
        DitQuantError: `path` exists and must stay, or cannot be written (full disk, no permission).
    """
    check_folder(path, overwrite)
    target = Path(path).resolve()
    with _part(target) as part:
        yield part
        _replace_folder(part, target)


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary path with the same file name that becomes `path` when the block ends; see `atomic_folder`."""
    check_file(path, overwrite)
    target = Path(path).resolve()
    with _part(target) as part:
        yield part / target.name
        os.replace(part / target.name, target)


def check_folder(path: str | os.PathLike, overwrite: bool = False) -> None:
    """Refuse, before any work is done, a folder that `atomic_folder` would refuse."""
    target = Path(path).resolve()
    with _clear_errors(target):
        if target.exists() and not target.is_dir():
            raise DitQuantError(f"{path} is a file, a folder is needed. Choose another folder.")
        if not target.is_dir() or not any(target.iterdir()):
            return
    if not overwrite:
        raise DitQuantError(f"{path} exists. Choose another folder or pass --overwrite.")
    if any(target == kept or target in kept.parents for kept in (Path.cwd(), Path.home())):
        raise DitQuantError(f"{path} holds the current or the home folder and is not overwritten. Choose another folder.")


def check_file(path: str | os.PathLike, overwrite: bool = False) -> None:
    """Refuse, before any work is done, a file that `atomic_file` would refuse."""
    with _clear_errors(Path(path)):
        if Path(path).is_dir():
            raise DitQuantError(f"{path} is a folder, a file is needed. Choose another file.")
        if Path(path).exists() and not overwrite:
            raise DitQuantError(f"{path} exists. Choose another file or pass --overwrite.")


@contextlib.contextmanager
def _part(target: Path) -> Iterator[Path]:
    """Make a locked folder beside the target; remove it, and the parents made for it, if the block raises."""
    made = [parent for parent in target.parents if not parent.exists()]
    part = target.with_name(f".{target.name}.part-{uuid.uuid4().hex[:8]}")
    try:
        with _clear_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            _sweep(target)
            part.mkdir()
            with _lock(part):
                yield part
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise
    shutil.rmtree(part, ignore_errors=True)


def _replace_folder(part: Path, target: Path) -> None:
    # part's own name is taken by now only if the process id wraps, the old folder gets the name of a finished one
    old = target.with_name(f".{target.name}.old-{uuid.uuid4().hex[:8]}")
    existed = target.exists()
    if existed:
        target.rename(old)
    try:
        part.rename(target)
    except BaseException:
        if existed:
            old.rename(target)
        raise
    if existed:
        shutil.rmtree(old, ignore_errors=True)


def _sweep(target: Path) -> None:
    """Remove what killed runs left: a living run holds the lock of its folder."""
    if fcntl is None:
        return
    for left in target.parent.glob(f".{_literal(target.name)}.part-*"):
        with contextlib.suppress(OSError), _lock(left):
            shutil.rmtree(left, ignore_errors=True)


def _literal(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _clear_errors(target: Path) -> Iterator[None]:
    """Put a full disk or a missing permission in one line."""
    try:
        yield
    except OSError as error:
        if error.errno not in _USERS_PROBLEM:
            raise
        place = error.filename if isinstance(error.filename, str) else target
        raise DitQuantError(f"cannot write {place}: {error.strerror}. {_USERS_PROBLEM[error.errno]}") from error
    except DitQuantError:
        raise
    except Exception as error:
        # safetensors and torch report a full disk in exceptions of their own
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        hint = _USERS_PROBLEM[errno.ENOSPC]
        raise DitQuantError(f"cannot write {target}: {os.strerror(errno.ENOSPC)}. {hint}") from error
