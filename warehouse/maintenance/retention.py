"""Retention: days that are too old are dropped, and what was counted of them stays.

What was counted of a day's messages was written with them (`warehouse.rebuild`), so only the details go. Files that
tell a lander where to go on leave their names behind, on files without rows.
"""

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final

import pyarrow.parquet as pq
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from warehouse import catalog as views
from warehouse.errors import RetentionError
from warehouse.maintenance import atomic_replace as swap
from warehouse.maintenance.compaction import day_of
from warehouse.schemas import BY_TOPIC
from warehouse.sink import parquet_files as landing

_DAY: Final = timedelta(days=1)


class RetentionSettings(BaseSettings):
    """Environment: `SMSPULSE_RETAIN_` and the field's name in capitals. Unset: kept for ever."""

    model_config = SettingsConfigDict(env_prefix="SMSPULSE_RETAIN_", frozen=True, extra="forbid", allow_inf_nan=False)

    raw_days: int | None = Field(None, ge=1, description="Days that raw webhooks are kept.")
    versions_days: int | None = Field(
        None, ge=1, description="Days that the versions of messages are kept: how far back `messages_as_of` goes."
    )
    messages_days: int | None = Field(
        None, ge=1, description="Days that messages are kept; what was counted of them outlives them."
    )
    deadletters_days: int | None = Field(None, ge=1, description="Days that dead letters are kept.")
    quality_days: int | None = Field(None, ge=1, description="Days that what `smspulse check` found is kept.")


@dataclass(slots=True)
class Retained:
    """What a run dropped: days by dataset."""

    dropped: dict[str, list[date]] = field(default_factory=dict)


def retain(data: Path, settings: RetentionSettings, now: datetime, at_least: timedelta) -> Retained:
    """Drop the days that are older than the settings say. Readers and landers go on meanwhile.

    Args:
        data: The data folder.
        settings: How many days of which dataset are kept.
        now: The time.
        at_least: How long messages can still change: none of raw and messages may be dropped earlier.

    Raises:
        RetentionError: The settings would lose what is still needed. Nothing was dropped.
        CannotExchangeError: The file system cannot do it.
        OSError: The data folder is not writable.
    """
    data = data.resolve()
    _check(settings, at_least)
    views.publish(data)
    today = now.astimezone(UTC).date()
    done = Retained()
    with swap.upkeep(data) as scratch:
        raw, versions, base, deadletters, quality = (
            None if days is None else today - timedelta(days)
            for days in (
                *(settings.raw_days, settings.versions_days, settings.messages_days),
                *(settings.deadletters_days, settings.quality_days),
            )
        )
        covered = views.covered(data)
        if covered is None:
            raw = versions = base = None  # before the first rebuild they are all there is of a message
        else:
            if not views.is_summed(data):
                base = None  # the next rebuild counts them
            _drop_base(data, scratch, base, raw, covered, done)
            versions = min(versions, covered.since) if versions else None
        for name, before in (
            *(("raw", raw), ("messages", versions), ("differences", base)),
            *(("deadletters", deadletters), ("quality", quality)),
        ):
            if before:
                for folder in _older(data / name, before):
                    _drop(folder, scratch)
                    done.dropped.setdefault(name, []).append(day_of(folder))
    return done


def _check(settings: RetentionSettings, at_least: timedelta) -> None:
    for name in ("raw_days", "messages_days"):
        days = getattr(settings, name)
        if days is not None and timedelta(days) < at_least:
            detail = f"{name} is {days}, but messages can change for {at_least / _DAY:g} days: raise it to that"
            raise RetentionError(detail)
    messages = settings.messages_days
    if messages is not None and (settings.raw_days is None or settings.raw_days > messages):
        detail = "messages_days needs raw_days of as many or fewer: messages would come back from the raw webhooks"
        raise RetentionError(detail)


def _older(folder: Path, before: date) -> list[Path]:
    days = (each for each in folder.glob("date=*") if landing.SEED_DATE < day_of(each) < before)
    return sorted(each for each in days if any(pq.read_metadata(path).num_rows for path in each.iterdir()))


def _drop_base(
    data: Path, scratch: Path, before: date | None, raw: date | None, covered: views.Covered, done: Retained
) -> None:
    """Let messages go, and say from which day on the log is whole."""
    base = data / "base"
    days = _older(base, before) if before else []
    gone = [path for folder in days for path in folder.iterdir()]
    come: dict[Path, Path] = {}
    # A file has records of the day behind it as well, so that day is not whole either.
    log = [day_of(folder) + 2 * _DAY for folder in (_older(data / "raw", raw) if raw else ())]
    floor = max([*log, covered.floor])
    if floor != covered.floor:
        come[base / views.COVERED] = path = scratch / views.COVERED
        path.write_text(covered._replace(floor=floor).json())
    if come or gone:
        swap.turn(base)
        swap.swap(base, scratch, gone, come)
    if days:
        done.dropped["base"] = [day_of(folder) for folder in days]


def _drop(folder: Path, scratch: Path) -> None:
    """Drop a day of a landed dataset, but for the names of the files by which landers know where to go on."""
    come: dict[Path, Path] = {}
    for path in folder.iterdir():
        name = landing.LANDED.fullmatch(path.name)
        if name and landing.newest(folder.parent, landing.log_of(name)) == path:
            place = path.with_name(f"{landing.stem(name)}-{swap.mark()}.parquet")
            come[place] = scratch / place.name
            schema = BY_TOPIC[name["topic"]].schema.with_metadata(landing.end_metadata(path))
            pq.write_table(schema.empty_table(), come[place])
            landing.keep_age(path, come[place])
    swap.swap(folder, scratch, list(folder.iterdir()), come)
    for path in come.values():
        path.unlink()
