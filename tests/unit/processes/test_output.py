"""Output that cannot be written blocks no process, and is written later."""

import fcntl
import os
import resource
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from smspulse.processes.output import TolerantStream, make_tolerant


@pytest.fixture
def full_pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a full pipe, as after a reader stopped reading."""
    reading, writing = os.pipe()
    os.write(writing, b"x" * fcntl.fcntl(writing, fcntl.F_GETPIPE_SZ))
    yield reading, writing
    os.close(writing)


def drained(descriptor: int) -> str:
    found = b""
    while select.select([descriptor], [], [], 0)[0] and (part := os.read(descriptor, 65536)):
        found += part
    return found.decode()


def test_output_for_a_paused_reader_is_written_when_it_reads_again(full_pipe: tuple[int, int]) -> None:
    reading, writing = full_pipe
    stream = TolerantStream(writing)
    stream.write("first\n")
    stream.write("second\n")
    assert drained(reading).strip("x") == ""
    stream.write("third\n")
    assert drained(reading) == "first\nsecond\nthird\n"


def test_output_beyond_the_buffer_is_dropped_oldest_first_and_counted(full_pipe: tuple[int, int]) -> None:
    reading, writing = full_pipe
    stream = TolerantStream(writing)
    for number in range(1_100):
        stream.write(f"{number}\n")
    assert drained(reading).strip("x") == ""
    found = ""
    while part := (stream.flush() or drained(reading)):
        found += part
    lines = found.splitlines()
    assert lines[:3] == ["0", "(100 lines could not be written)", "101"]
    assert lines[-1] == "1099"


def test_lines_for_a_full_disk_are_written_once_it_has_space(tmp_path: Path) -> None:
    path = tmp_path / "log"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with path.open("wb", buffering=0) as file:
        stream = TolerantStream(file.fileno())
        stream.write("fits\n")
        resource.setrlimit(resource.RLIMIT_FSIZE, (8, before[1]))
        try:
            stream.write("does not fit\n")
            stream.write("nor does this\n")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        stream.write("fits again\n")
    assert path.read_text() == "fits\ndoes not fit\nnor does this\nfits again\n"


def test_a_reader_that_has_ended_and_a_closed_output_drop_everything() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = TolerantStream(writing)
    assert stream.write("nobody reads this\n") == 18
    stream.flush()
    os.close(writing)
    closed = make_tolerant(None)
    assert closed.write("nor this\n") == 9
    assert not closed.isatty()


def test_characters_that_the_encoding_lacks_are_escaped() -> None:
    reading, writing = os.pipe()
    TolerantStream(writing, "ascii").write("├ ä \ud800\n")
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b"\\u251c \\xe4 \\ud800\n"
