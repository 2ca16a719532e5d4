"""How many partitions the topics have, and what is said where they do not fit together."""

import pytest

from core.topics import DEVICES, OUTCOMES, RAW, TOPICS, find_partition_mismatch


@pytest.mark.parametrize(("by_message", "by_device"), [(1, 1), (4, 1), (7, 1), (8, 2), (64, 16)])
def test_topics_by_device_have_a_quarter_of_the_partitions(by_message: int, by_device: int) -> None:
    counts = {topic.name: topic.partition_count(by_message) for topic in TOPICS}
    assert counts[RAW] == by_message
    assert counts[DEVICES] == counts[OUTCOMES] == by_device
    assert find_partition_mismatch(counts, by_message) is None


def test_what_does_not_fit_is_told_with_what_to_do() -> None:
    counts = {topic.name: topic.partition_count(8) for topic in TOPICS}
    assert find_partition_mismatch(counts, 4) == (
        "topic sms.raw has 8 partitions and SMSPULSE_KAFKA_PARTITIONS is 4",
        "set it to 8, or, if no data must be kept, delete the topic",
    )
    assert find_partition_mismatch(counts | {OUTCOMES: 3, DEVICES: 3}, 8) is None
    assert find_partition_mismatch(counts | {OUTCOMES: 8}, 8) == (
        "topic sms.outcomes has 8 partitions and sms.devices has 2",
        "they must have the same number: give the smaller one more",
    )
