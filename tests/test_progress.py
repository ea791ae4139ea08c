"""Bars: silent for a moment's work, then with the time left, and few lines in a log file."""

import time

from ditquant import progress


def test_short_work_is_silent(capsys):
    assert list(progress.bar(range(5), desc="short")) == list(range(5))
    assert capsys.readouterr().err == ""


def test_long_work_shows_the_time_left(capsys, monkeypatch):
    monkeypatch.setattr(progress, "DELAY_S", 0.02)
    monkeypatch.setattr(progress, "LOG_INTERVAL_S", 0.0)
    for _ in progress.bar(range(4), desc="long"):
        time.sleep(0.03)
    shown = capsys.readouterr().err
    assert "long:  75%" in shown and "00:00<00:00" in shown


def test_a_log_file_gets_few_lines(capsys, monkeypatch):
    monkeypatch.setattr(progress, "DELAY_S", 0.0)
    for _ in progress.bar(range(40), desc="log"):
        time.sleep(0.005)
    assert capsys.readouterr().err.count("\r") <= 3
