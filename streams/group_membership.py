"""Membership of the worker in its consumer group: unassigned partitions, and return of the static name.

A static member that restarts gets its former partitions, without a rebalance of the group. If topics were missing at
the last assignment, as between their deletion and their creation, it would wait for them for ever: only the group's
leader detects new topics, and a restarted member does not lead (KIP-814, which aiokafka 0.14 does not implement). So
such a worker returns its name before it ends, and joins as a new member.
"""

import logging
from contextlib import closing
from typing import Final

from confluent_kafka import ConsumerGroupState
from confluent_kafka.admin import AdminClient
from kafka.admin import MemberToRemove
from kafka.errors import KafkaError

from core.kafka_admin import KafkaPythonAdmin
from core.kafka_settings import KafkaSettings
from streams.settings import StreamSettings
from streams.topology import STAGES

_log = logging.getLogger(__name__)

_TIMEOUT_S: Final = 5.0


class GroupMembership:
    """The worker as a static member of its group. The in-memory broker has no static members, and is not queried."""

    def __init__(self, settings: StreamSettings, kafka: KafkaSettings) -> None:
        self._settings = settings
        self._kafka = kafka
        is_static = settings.instance and not kafka.in_memory
        self._admin = AdminClient(kafka.confluent_options() | {"log_level": 2}) if is_static else None

    def unassigned_partitions(self) -> set[tuple[str, int]]:
        """Return topic and number of the stages' partitions that no member of the group has. Empty during a rebalance.

        Raises:
            KafkaException: Kafka does not answer.
        """
        if self._admin is None:
            return set()
        topics = self._admin.list_topics(timeout=_TIMEOUT_S).topics
        existing = {(name, number) for name in STAGES if name in topics for number in topics[name].partitions}
        described = self._admin.describe_consumer_groups([self._settings.group], request_timeout=_TIMEOUT_S)
        try:
            group = described[self._settings.group].result(2 * _TIMEOUT_S)
        except TimeoutError:
            return set()
        if group.state != ConsumerGroupState.STABLE:
            return set()
        assigned = {(p.topic, p.partition) for member in group.members for p in member.assignment.topic_partitions}
        return existing - assigned

    def leave_group(self) -> None:
        """Return the static name, so that the group rebalances without this worker."""
        if self._admin is None:
            return
        try:
            with closing(KafkaPythonAdmin(self._kafka)) as admin:
                member = MemberToRemove(group_instance_id=self._settings.instance)
                admin.remove_group_members(self._settings.group, [member])
        except KafkaError as error:
            # The group removes this member when its session times out, if it does not restart before that.
            _log.warning("cannot leave the group %s: %s", self._settings.group, error)
