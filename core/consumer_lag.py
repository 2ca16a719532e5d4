"""Lag of a reader in one partition, in records. Every process computes it here."""


def records_behind(end: int, *positions: int) -> int:
    """Return the number of records left to read, 0 if all are read.

    It counts offsets. In a topic that is written in transactions, markers and aborted records have offsets too. So the
    result may be too large while records are left.

    Args:
        end: The offset behind the last record of the partition.
        positions: Offsets that the reader has reached: behind the last record, and behind the transaction markers that
            follow it. A reader that counts records alone never passes the markers, so never reaches the end.
    """
    return max(end - max(positions), 0)
