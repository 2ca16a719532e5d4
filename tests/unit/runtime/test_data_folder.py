"""Who may read the data folder: its user alone, or a group as well; and what `smspulse` makes elsewhere."""

import grp
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from landing import land_records
from privileges import run_unprivileged
from restored import RestoredFolder
from warehouse_records import raw, status

from smspulse.processes.data_folder import describe_readers, set_private_umask, user_name
from warehouse import catalog

GROUP = grp.getgrgid(os.getegid()).gr_name
IN_ALL_DATA = (
    ("source", "add", "mine"),
    ("compact",),
    ("rebuild",),
    ("sql", "FROM raw_webhooks", "--format", "csv", "--output"),
)
"""Commands that make files in the data folder; the last one is given the path of one."""


@pytest.fixture(autouse=True)
def common_umask() -> Iterator[None]:
    """What a user's shell has: all may read what is made."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def smspulse(*arguments: str, data: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [sys.executable, "-m", "smspulse", *arguments, "--data", str(data)],
        env=os.environ | {"COLUMNS": "300"} | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def rights(folder: Path) -> dict[str, int]:
    """Return the mode of a folder and of all that is in it."""
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.rglob("*"))}


def open_to(folder: Path, mask: int) -> dict[str, str]:
    return {name: f"{mode:04o}" for name, mode in rights(folder).items() if mode & mask}


@pytest.fixture(scope="module")
def _old(tmp_path_factory: pytest.TempPathFactory) -> RestoredFolder:
    folder = tmp_path_factory.mktemp("old") / "data"
    before = os.umask(0o022)
    folder.mkdir()
    catalog.publish_views(folder)
    land_records(folder, 0, [raw(0, status(7, 6))])
    os.umask(before)
    return RestoredFolder(folder)


@pytest.fixture
def old(_old: RestoredFolder, tmp_path: Path) -> Iterator[Path]:
    """A data folder as an earlier version made it: all may read it."""
    with _old.restored(tmp_path / "data") as folder:
        assert open_to(folder, 0o005)
        yield folder


def test_what_commands_make_in_the_data_folder_is_for_its_user_alone(tmp_path: Path) -> None:
    data = tmp_path / "data"
    before = os.umask(0o077)
    catalog.publish_views(data)
    os.umask(before)
    for command in IN_ALL_DATA:
        output = [str(data / "export.csv")] if command[-1] == "--output" else []
        assert smspulse(*command, *output, data=data).returncode in {0, 1}
    assert {"sources.json", "export.csv", ".tmp"} <= set(rights(data))
    assert open_to(data, 0o077) == {}


def test_a_folder_of_an_earlier_version_is_closed_with_one_line_and_another_command_has_nothing_to_say(
    old: Path,
) -> None:
    assert describe_readers(old) == (False, "every user of this machine may enter it (mode 0755)")
    first = smspulse("compact", data=old)
    (line,) = (line for line in first.stderr.splitlines() if "was open" in line)
    assert f"the data folder {old} was open to every user of this machine (mode 0755): it is now for " in line
    assert rights(old)["."] == 0o700
    assert "was open" not in smspulse("compact", data=old).stderr
    assert describe_readers(old) == (True, f"{user_name(os.geteuid())} alone may read it")


def test_a_command_that_only_reads_changes_no_rights(old: Path) -> None:
    before = rights(old)
    assert smspulse("sql", "FROM freshness", data=old).returncode == 0
    assert rights(old) == before


def test_a_group_may_read_what_there_is_and_what_comes_but_no_secrets(old: Path) -> None:
    (old / "kafka").mkdir()
    (old / "demo.token").touch(mode=0o600)
    smspulse("source", "add", "before", data=old)
    assert smspulse("compact", data=old, SMSPULSE_READ_GROUP=GROUP).returncode == 0
    smspulse("source", "add", "mine", data=old)  # the folder keeps its group, whatever the settings of this process are
    smspulse("sql", "FROM raw_webhooks", "--format", "csv", "--output", str(old / "new.csv"), data=old)
    found = rights(old)
    assert (found["."], found["new.csv"], found["smspulse.duckdb"]) == (0o2750, 0o640, 0o640)
    landed = [name for name in found if name.startswith("raw/") and name.endswith(".parquet")]
    assert landed
    for name in landed:
        assert (found[name] & 0o640, found[str(Path(name).parent)] & 0o2050) == (0o640, 0o2050), name
    assert {found[name] & 0o077 for name in ("sources.json", "demo.token")} == {0}
    assert open_to(old, 0o007).keys() <= {"kafka"}, "what only its user needs is not walked over"
    assert describe_readers(old) == (True, f"{user_name(os.geteuid())} and the group {GROUP} may read it")


def test_a_group_that_does_not_exist_is_one_line(tmp_path: Path) -> None:
    done = smspulse("source", "add", "mine", data=tmp_path, SMSPULSE_READ_GROUP="no-such-group")
    assert (done.returncode, done.stderr) == (
        2,
        "smspulse: SMSPULSE_READ_GROUP=no-such-group: there is no such group; create it, or correct the name\n",
    )


def test_whoever_may_not_read_it_gets_a_line_about_who_may(old: Path) -> None:
    old.chmod(0)
    for command in (("status",), ("doctor",)):
        done = run_unprivileged("-m", "smspulse", *command, "--data", str(old))
        assert done.returncode == 2, done.stdout
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"smspulse: the data folder {old} is for "), line
    old.chmod(0o700)


def test_an_export_to_elsewhere_has_the_rights_that_the_user_gives(old: Path, tmp_path: Path) -> None:
    path = tmp_path / "export.csv"
    smspulse("sql", "FROM raw_webhooks", "--format", "csv", "--output", str(path), data=old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to write to the folder of another user")
def test_the_owner_of_a_folder_can_read_what_root_has_made_there(old: Path) -> None:
    old.chmod(0o700)
    os.chown(old, 65534, -1)
    assert smspulse("sql", "FROM raw_webhooks", "--format", "csv", "--output", str(old / "x"), data=old).returncode == 0
    assert rights(old)["x"] == 0o644
    assert rights(old)["."] == 0o700


@pytest.mark.parametrize(
    ("mode", "umask"),
    [
        (0o700, 0o077),
        (0o2700, 0o077),
        (0o750, 0o027),
        (0o2770, 0o007),
        (0o755, 0o077),
        (0o777, 0o077),
        (0o2775, 0o007),
    ],
    ids=oct,
)
def test_the_umask_follows_from_the_mode_of_the_folder(tmp_path: Path, mode: int, umask: int) -> None:
    tmp_path.chmod(mode)
    before = os.umask(0o022)
    set_private_umask(tmp_path)
    assert os.umask(before) == umask
