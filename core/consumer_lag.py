"""Lag: how many records of a partition a reader has before it. Every process computes it here."""


def records_behind(end: int, *positions: int) -> int:
    """Return how many records are left to read, 0 if all are read.

    Offsets are counted, and in a topic that is written in transactions some of them are of markers and of records that
    were aborted. So it may be more than what is left, as long as anything is.

    Args:
        end: The offset behind the last record of the partition.
        positions: Offsets that are read up to: that behind the last record, and that behind the transaction markers
            which follow it. Markers are no records, so a reader that counts records alone never reaches the end.
    """
    return max(end - max(positions), 0)
