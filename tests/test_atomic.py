"""A target is complete or not there: success, failure, overwriting, killed runs, full disks."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ditquant.atomic import atomic_file, atomic_folder, check_file, check_folder, check_free
from ditquant.errors import DitQuantError


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_folder_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "new" / "out"
    with atomic_folder(target) as part:
        (part / "a.txt").write_text("a")
        assert not target.exists()
        assert part.parent == target.parent and part.name.startswith(".out.part")
    assert contents(tmp_path) == {"new/out/a.txt": "a"}
    assert list(target.parent.iterdir()) == [target]
    assert target.stat().st_mode == (tmp_path / "new").stat().st_mode


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_failure_leaves_nothing_and_keeps_the_old(tmp_path, error):
    with pytest.raises(error), atomic_folder(tmp_path / "new" / "out") as part:
        (part / "a.txt").write_text("a")
        raise error()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.txt").write_text("old")
    with pytest.raises(error), atomic_folder(tmp_path / "out", overwrite=True) as part:
        (part / "a.txt").write_text("a")
        raise error()
    assert contents(tmp_path) == {"out/old.txt": "old"}


def test_overwrite_replaces_only_when_complete(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    with atomic_folder(target) as part:  # an empty folder is free
        (part / "old.txt").write_text("old")
    with pytest.raises(DitQuantError, match=r"out exists\. Choose another folder or pass --overwrite\."):
        check_folder(target)
    with pytest.raises(DitQuantError, match="--overwrite"), atomic_folder(target):
        raise AssertionError("the block must not run")
    with atomic_folder(target, overwrite=True) as part:
        assert contents(target) == {"old.txt": "old"}
        (part / "new.txt").write_text("new")
    assert contents(tmp_path) == {"out/new.txt": "new"}
    assert list(tmp_path.iterdir()) == [target]


def test_file(tmp_path):
    target = tmp_path / "deep" / "fox.png"
    with atomic_file(target) as part:
        assert part.name == "fox.png"
        part.write_text("1")
    with pytest.raises(DitQuantError, match=r"fox\.png exists\. Choose another file or pass --overwrite"):
        check_file(target)
    with pytest.raises(RuntimeError), atomic_file(target, overwrite=True) as part:
        part.write_text("2")
        raise RuntimeError
    assert target.read_text() == "1"
    with atomic_file(target, overwrite=True) as part:
        part.write_text("2")
    assert contents(tmp_path) == {"deep/fox.png": "2"}
    assert list(target.parent.iterdir()) == [target]


def test_the_wrong_kind_is_refused(tmp_path):
    (tmp_path / "file").write_text("1")
    with pytest.raises(DitQuantError, match="is a file, a folder is needed"):
        check_folder(tmp_path / "file", overwrite=True)
    with pytest.raises(DitQuantError, match="is a folder, a file is needed"):
        check_file(tmp_path, overwrite=True)
    with pytest.raises(DitQuantError, match=r"cannot write .*: Not a directory\. Choose another place"):
        check_free(tmp_path / "file" / "out")
    with pytest.raises(DitQuantError, match="--overwrite"):
        check_free(tmp_path / "file")
    check_free(tmp_path / "file", overwrite=True)
    check_free(tmp_path / "missing" / "out")


def test_the_current_folder_is_never_replaced(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "work.txt").write_text("mine")
    monkeypatch.chdir(tmp_path / "here")
    for target in (".", ".."):
        with pytest.raises(DitQuantError, match="current or home folder"):
            check_folder(target, overwrite=True)


def test_a_symbolic_link_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    with atomic_folder(tmp_path / "link") as part:
        (part / "a").write_text("a")
    assert (tmp_path / "link").is_symlink() and contents(tmp_path / "disk") == {"a": "a"}


def test_a_killed_run_does_not_block_and_is_swept(tmp_path):
    code = (
        "import sys, time\nfrom ditquant.atomic import atomic_folder\n"
        "with atomic_folder(sys.argv[1]) as part:\n"
        "    (part / 'half').write_text('x'); print('in', flush=True); time.sleep(60)\n"
    )
    target = tmp_path / "out*"
    run = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, str(target)], stdout=subprocess.PIPE, text=True)
    with run:
        assert run.stdout.readline() == "in\n"
        with atomic_folder(tmp_path / "other") as part:
            (part / "a").write_text("a")
        with atomic_folder(target) as part:
            (part / "b").write_text("b")
        assert len(list(tmp_path.glob(".out*part-*"))) == 1, "the living run keeps its folder"
        run.send_signal(signal.SIGKILL)
    assert len(list(tmp_path.glob(".out*part-*"))) == 1
    with atomic_folder(target, overwrite=True) as part:
        (part / "c").write_text("c")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "out*"]
    assert contents(target) == {"c": "c"}


def test_a_full_disk_is_one_line(tmp_path):
    with (
        pytest.raises(DitQuantError, match=r"cannot write .*out: No space left on device\. Free some space") as caught,
        atomic_folder(tmp_path / "out"),
        open("/dev/full", "w") as file,
    ):
        file.write("x" * 100_000)
    assert "\n" not in str(caught.value)
    with pytest.raises(DitQuantError, match="No space left"), atomic_file(tmp_path / "out.safetensors"):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DitQuantError, match="Permission denied"):
        check_folder(tmp_path / "out")


def test_no_permission_from_the_system_is_one_line(tmp_path):
    with pytest.raises(DitQuantError, match="Permission denied"), atomic_folder(tmp_path / "out"):
        raise PermissionError(13, "Permission denied")


def test_other_errors_pass_unchanged(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "out"):
        (tmp_path / "nothing").read_text()


def test_what_another_run_finished_meanwhile_stays(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(DitQuantError, match="--overwrite"), atomic_folder(target) as mine:
        (mine / "a").write_text("mine")
        with atomic_folder(target) as other:
            (other / "a").write_text("other")
    assert (target / "a").read_text() == "other" and [p.name for p in tmp_path.iterdir()] == ["out"]
    file = tmp_path / "f.txt"
    with pytest.raises(DitQuantError, match="--overwrite"), atomic_file(file) as mine:
        mine.write_text("mine")
        file.write_text("other")
    assert file.read_text() == "other"
