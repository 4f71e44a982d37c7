"""A policy file that changes while it is in use."""

import logging
import os
from pathlib import Path

import pytest

from hybrid.errors import PolicyError
from hybrid.policies.watch import WatchedPolicy


def write(file: Path, text: str) -> None:
    """Another text, with a later time even where the clock is coarse."""
    later = file.stat().st_mtime_ns + 10**9 if file.exists() else None
    file.write_text(text)
    if later is not None:
        os.utime(file, ns=(later, later))


def test_a_change_is_in_force_at_once(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    write(file, "version: 1\ndescription: first\n")
    watched = WatchedPolicy(file)
    first = watched.current()
    assert watched.current() is first
    write(file, "version: 1\ndescription: second\n")
    assert watched.current().description == "second"


def test_a_broken_change_leaves_the_policy_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "p.yaml"
    write(file, "version: 1\n")
    watched = WatchedPolicy(file)
    write(file, "version: 1\nbudgt: 1s\n")
    with caplog.at_level(logging.WARNING):
        assert watched.current() is watched.current()
    assert caplog.text.count("unknown key") == 1
    assert watched.error is not None
    write(file, "version: 1\ndescription: mended\n")
    assert watched.current().description == "mended"
    assert watched.error is None


def test_a_file_that_goes_away_leaves_the_policy(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    write(file, "version: 1\ndescription: first\n")
    watched = WatchedPolicy(file)
    file.unlink()
    assert watched.current().description == "first"
    assert isinstance(watched.error, PolicyError)


def test_a_file_must_be_valid_to_start_with(tmp_path: Path) -> None:
    with pytest.raises(PolicyError):
        WatchedPolicy(tmp_path / "missing.yaml")


def test_another_file_of_the_same_time_and_size_is_noticed_through_a_link(tmp_path: Path) -> None:
    texts = {"first": "version: 1\ndescription: one\n", "later": "version: 1\ndescription: two\n"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        os.utime(tmp_path / name, ns=(10**18, 10**18))
    link = tmp_path / "p.yaml"
    link.symlink_to(tmp_path / "first")
    watched = WatchedPolicy(link)
    link.unlink()
    link.symlink_to(tmp_path / "later")
    assert watched.current().description == "two"
