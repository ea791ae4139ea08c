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

_WAY_OUT = {
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
        check_folder(path, overwrite)  # another run may have finished meanwhile
        _replace_folder(part, target)


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary path with the same file name that becomes `path` when the block ends; see `atomic_folder`."""
    check_file(path, overwrite)
    target = Path(path).resolve()
    with _part(target) as part:
        yield part / target.name
        check_file(path, overwrite)
        os.replace(part / target.name, target)


def check_free(path: str | os.PathLike, overwrite: bool = False) -> None:
    """Refuse, before any work is done, a place that cannot be written; for a file as for a folder."""
    check = check_file if Path(path).is_file() else check_folder
    check(path, overwrite)


def check_folder(path: str | os.PathLike, overwrite: bool = False) -> None:
    """Refuse, before any work is done, what `atomic_folder` would refuse."""
    target = Path(path).resolve()
    with clear_errors(target):
        _check_parent(target)
        if target.exists() and not target.is_dir():
            raise DitQuantError(f"{path} is a file, a folder is needed. Choose another folder.")
        if not target.is_dir() or not any(target.iterdir()):
            return
    if not overwrite:
        raise DitQuantError(f"{path} exists. Choose another folder or pass --overwrite.")
    if any(target == kept or target in kept.parents for kept in (Path.cwd(), Path.home())):
        raise DitQuantError(f"{path} holds the current or home folder, which stays. Choose another folder.")


def check_file(path: str | os.PathLike, overwrite: bool = False) -> None:
    """Refuse, before any work is done, what `atomic_file` would refuse."""
    target = Path(path).resolve()
    with clear_errors(target):
        _check_parent(target)
        if target.is_dir():
            raise DitQuantError(f"{path} is a folder, a file is needed. Choose another file.")
        if target.exists() and not overwrite:
            raise DitQuantError(f"{path} exists. Choose another file or pass --overwrite.")


def _check_parent(target: Path) -> None:
    parent = next(p for p in target.parents if p.exists())
    if not parent.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if not os.access(parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextlib.contextmanager
def _part(target: Path) -> Iterator[Path]:
    """Make a locked folder beside the target; remove it, and the parents made for it, if the block raises."""
    made = [parent for parent in target.parents if not parent.exists()]
    part = target.with_name(f".{target.name}.part-{uuid.uuid4().hex[:8]}")
    try:
        with clear_errors(target):
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
    prefix = f".{target.name}.part-"
    for left in [p for p in target.parent.iterdir() if p.name.startswith(prefix)]:
        with contextlib.suppress(OSError), _lock(left) as dead:
            if dead:
                shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Give whether the lock was got; the system lets go of it when the process dies."""
    if fcntl is None:
        yield False
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            got = True
        except OSError:  # held by another run, or a file system without locks
            got = False
        yield got
    finally:
        os.close(handle)


@contextlib.contextmanager
def clear_errors(target: Path) -> Iterator[None]:
    """Put a full disk or a missing permission in one line."""
    try:
        yield
    except DitQuantError:
        raise
    except OSError as error:
        if error.errno not in _WAY_OUT:
            raise
        elsewhere = isinstance(error.filename, str) and f".{target.name}.part-" not in error.filename
        place = error.filename if elsewhere else target
        raise DitQuantError(f"cannot write {place}: {error.strerror}. {_WAY_OUT[error.errno]}") from error
    except Exception as error:
        # safetensors and torch report a full disk in exceptions of their own
        full = os.strerror(errno.ENOSPC)
        if full not in str(error):
            raise
        raise DitQuantError(f"cannot write {target}: {full}. {_WAY_OUT[errno.ENOSPC]}") from error
