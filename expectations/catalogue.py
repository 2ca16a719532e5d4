"""The checks: what must hold of each dataset, why, and what to do if it does not. In the order in which data walks."""

from collections.abc import Mapping
from typing import Final

from expectations.settings import CheckSettings
from expectations.suites import Check
from gateway.statuses import ENDS, FAILURES, STATUSES, Outcome, Status

BATCHES: Final = {
    "raw": """
        SELECT
            topic || ':' || "partition" || ':' || "offset" AS scope, topic, "partition", "offset", ingest_id,
            (epoch_ms(received_at) - try_cast('0x' || replace(ingest_id[1:13], '-', '') AS BIGINT)) / 1000 AS id_lag_s
        FROM raw_files
        WHERE topic IS NOT NULL AND recorded_at >= (SELECT max(recorded_at) FROM raw_files) - INTERVAL 1 DAY
        ORDER BY recorded_at DESC LIMIT getvariable('batch_rows')
    """,
    "messages": """
        SELECT
            message_key AS scope, first_seen_at, last_seen_at,
            epoch(first_seen_at - list_min([each.first_received_at FOR each IN observations])) AS first_off_s,
            epoch(last_seen_at - list_max([each.last_received_at FOR each IN observations])) AS last_off_s,
            version - len(observations) AS further_facts
        FROM version_files
        WHERE version IS NOT NULL
            AND recorded_at >= (SELECT max(recorded_at) FROM version_files) - INTERVAL 1 DAY
        ORDER BY recorded_at DESC LIMIT getvariable('batch_rows')
    """,
}
"""The newest rows of a dataset, for what Great Expectations says of rows; `scope` names a row."""

RELATIONS: Final = {
    "raw": ("raw_files", "topic || ':' || \"partition\" || ':' || \"offset\""),
    "messages": ("messages", "message_key"),
    "deadletters": ("deadletter_files", "topic || ':' || \"partition\" || ':' || \"offset\""),
}
"""Of which rows `Check.wrong` speaks, and what names one."""


def all_checks(settings: CheckSettings, statuses: Mapping[int, Status] = STATUSES) -> tuple[Check, ...]:
    """Return every check of what was landed."""
    return (
        *_files("raw"), *_raw(settings),
        *_files("messages"), *_messages(settings, statuses),
        *_files("deadletters"), *_deadletters(settings),
        *_devices(settings), *_delivery(),
    )  # fmt: skip


def _files(dataset: str) -> tuple[Check, ...]:
    return (
        Check(
            f"{dataset}_files_contiguous", dataset, "critical",
            "A file is missing, or there twice: each begins at the offset at which the one before it ended.",
            f"Put back the file that was moved out of {dataset}/, or move out the copy; the newest is landed again.",
        ),
        Check(
            f"{dataset}_columns_exact", dataset, "critical",
            f"A file of {dataset} has other columns or types than this version writes: queries see nulls or fail.",
            "Bring lander and readers to one version; a file that is not the lander's is moved out of the folder.",
        ),
    )  # fmt: skip


def _raw(settings: CheckSettings) -> tuple[Check, ...]:
    recent = f"of the last {settings.recent_h:g} h"
    is_status, is_incoming = "kind = 'status'", "kind = 'incoming'"
    return (
        Check(
            "raw_offsets_contiguous", "raw", "critical",
            "Webhooks that were accepted are not in the warehouse: nothing but a webhook takes an offset of sms.raw.",
            "Put back the file that was moved out of raw/; if the lander logged LOST, raise the topic's retention.ms.",
            rows="""
                SELECT topic || ':' || "partition" || ': ' || before + 1 || ' to ' || "offset" - 1 FROM (
                    SELECT *, lag("offset") OVER (PARTITION BY topic, "partition" ORDER BY "offset") AS before
                    FROM raw_files
                ) WHERE "offset" > before + 1
            """,
        ),
        Check(
            "raw_offsets_unique", "raw", "critical",
            "Webhooks are in the warehouse twice, and every count of them is too high.",
            "Find the copied file in raw/ and move it out: names hold topic, partition and first offset.",
            rows="""
                SELECT topic || ':' || "partition" || ':' || "offset" || ' in ' || string_agg(filename, ' and ')
                FROM raw_files GROUP BY topic, "partition", "offset" HAVING count(*) > 1
            """,
        ),
        Check(
            "raw_partitions_there", "raw", "critical",
            "The stream has made messages of a partition of sms.raw of which nothing was landed.",
            "Put back the files of the partition; see whether the lander's log names it.",
        ),
        Check(
            "raw_ingest_ids_unique", "raw", "critical",
            "One webhook was written to Kafka more than once: its reports count double in raw, though not in messages.",
            "Compare the rows of these ingest_ids in raw_webhooks: look for a second writer or a replay to sms.raw.",
            rows="SELECT ingest_id FROM raw_files WHERE spooled IS NOT TRUE GROUP BY ingest_id HAVING count(*) > 1",
        ),
        Check(
            "raw_receipts_complete", "raw", "critical",
            "Records lack source, ingest_id or received_at, so they did not come through ingest.",
            "Find who writes to sms.raw beside `smspulse ingest`.",
            wrong="source IS NULL OR ingest_id IS NULL OR received_at IS NULL",
        ),
        Check(
            "raw_ingest_ids_valid", "raw", "critical",
            "An ingest_id is no UUIDv7, so it was not ingest that gave it.",
            "Find who writes to sms.raw beside `smspulse ingest`.",
            on_rows=("ExpectColumnValuesToMatchRegex", {
                "column": "ingest_id", "regex": "^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$",
            }),
        ),
        Check(
            "raw_receipts_timed", "raw", "critical",
            "received_at is another time than the one in ingest_id: latencies, hours and days are wrong.",
            "See whether the clock of an ingest host jumped, or somebody changed what was landed.",
            on_rows=("ExpectColumnValuesToBeBetween", {"column": "id_lag_s", "min_value": -60, "max_value": 60}),
        ),
        Check(
            "raw_rows_unique", "raw", "critical",
            "Among the newest webhooks one offset is there twice.",
            "Find the copied file in raw/ and move it out: names hold topic, partition and first offset.",
            on_rows=("ExpectCompoundColumnsToBeUnique", {"column_list": ["topic", "partition", "offset"]}),
        ),
        Check(
            "raw_recorded_when_received", "raw", "critical",
            "Kafka's time of a record is not its received_at, as ingest writes it: one of the two was changed.",
            "Find who changed what was landed, or writes to sms.raw; see that the topic has CreateTime.",
            wrong="received_at <> recorded_at",
        ),
        Check(
            "raw_dates_right", "raw", "warning",
            "A file is in the folder of another date than its records, so retention and scans by date miss it.",
            "Move the file into the folder date=… of its first recorded_at.",
            wrong="abs(date - recorded_at::DATE) > 2",
        ),
        Check(
            "raw_bodies_there", "raw", "critical",
            "Webhooks have no body: the exact bytes are what everything can be computed from anew.",
            "Find who writes to sms.raw beside `smspulse ingest`.",
            wrong="body IS NULL",
        ),
        Check(
            "raw_kinds_legal", "raw", "critical",
            "A row is no status report, incoming message or unreadable body, or lacks what makes it one.",
            "Bring lander and readers to one version, or find who changed the file.",
            wrong=f"""
                kind IS NULL OR kind NOT IN ('status', 'incoming', 'unreadable')
                OR (kind = 'unreadable') <> (reason IS NOT NULL)
                OR ({is_status} AND (sms_id IS NULL OR status_id IS NULL))
                OR ({is_incoming} AND (sms_id IS NULL OR status_id IS NOT NULL))
            """,
        ),
        Check(
            "raw_incoming_whole", "raw", "warning",
            "An incoming message has both a text and an image, or neither.",
            "Look at its body in raw_webhooks: the gateway may send a generation of payloads that is not known yet.",
            # With SMSPULSE_INGEST_BODIES=drop the text is null in the body itself; `smspulse erase` takes both.
            wrong=rf"""
                {is_incoming} AND ((text <> '' AND image_url IS NOT NULL) OR (
                    text IS NULL AND image_url IS NULL AND body IS DISTINCT FROM 'erased'
                    AND NOT regexp_matches(coalesce(body, ''::BLOB)::VARCHAR, '\\x22body\\x22: ?null')
                ))
            """,
        ),
        Check(
            "raw_channels_in_range", "raw", "warning",
            f"A channel is above {settings.max_channel}: no phone has so many SIM slots.",
            "Compare body and columns of these rows; fields may have changed places.",
            wrong=f"channel_id NOT BETWEEN 0 AND {settings.max_channel}",
        ),
        Check(
            "raw_devices_in_range", "raw", "warning",
            "A device id is 0 or less: the gateway's ids begin at 1.",
            "Compare body and columns of these rows; fields may have changed places.",
            wrong="device_id < 1",
        ),
        Check(
            "raw_clock_not_ahead", "raw", "warning",
            "The newest webhook was received in the future: a clock is wrong, and with it latencies and hours.",
            "Compare the clocks of this machine and of the ingest hosts; let them be set by NTP.",
            unit="seconds", least=-settings.max_ahead_s, most=None,
        ),
        Check(
            "raw_fresh", "raw", "info",
            "No webhook has been landed for a while: the phones rest, or ingest or the lander do.",
            "If messages are being sent, look at `smspulse status` and at the webhook URL in the gateway's settings.",
            unit="seconds", most=settings.max_quiet_s,
        ),
        Check(
            "raw_pauses_usual", "raw", "warning",
            "A source was silent for far longer than in the same hour of the last four weeks.",
            "See whether the gateway's queue and the phones ran then, and whether ingest and the lander did.",
            unit="times", most=settings.max_pause,
        ),
        Check(
            "raw_readable", "raw", "warning",
            f"Many webhooks {recent} cannot be read, so they are in no rate.",
            "SELECT source, reason, count(*) FROM deadletters GROUP BY ALL; then look at who sends them.",
            unit="share", most=settings.max_unreadable_share,
        ),
        Check(
            "raw_flawless", "raw", "warning",
            f"Many webhooks {recent} have a field that cannot be read and is null.",
            "SELECT unnest(flaws), count(*) FROM raw_webhooks GROUP BY ALL; then look at their bodies.",
            unit="share", most=settings.max_flawed_share,
        ),
        Check(
            "raw_codes_known", "raw", "warning",
            f"Many status reports {recent} are of undocumented statuses, which move nothing.",
            "SELECT status_id, status_message, count(*) FROM status_events GROUP BY ALL; SMSPULSE_STREAM_"
            "STATUS_MEANINGS can say what they mean.",
            unit="share", most=settings.max_unknown_share,
        ),
        Check(
            "raw_codes_familiar", "raw", "info",
            f"An undocumented status was reported {recent} that had never been seen: the gateway may have a new one.",
            "SELECT status_id, status_message, min(received_at) FROM status_events GROUP BY ALL; ask the gateway.",
        ),
        Check(
            "raw_reports_new", "raw", "warning",
            f"Many status reports {recent} repeat another one to the letter: the gateway sends them again and again.",
            "See how long ingest takes to answer (/metrics), and whether two webhooks lead here.",
            unit="share", most=settings.max_duplicate_share,
        ),
        Check(
            "raw_sent_before_received", "raw", "warning",
            "The gateway's senttime lies after the receipt: its times are of another zone than SMSPULSE_ZONE says.",
            "Compare sent_at and received_at in status_events, and set SMSPULSE_ZONE.",
            unit="share", most=settings.max_early_share,
        ),
    )  # fmt: skip


def _messages(settings: CheckSettings, statuses: Mapping[int, Status]) -> tuple[Check, ...]:
    def among(values: object) -> str:
        return ", ".join(f"'{value}'" for value in sorted(values))  # type: ignore[call-overload]

    outcomes = ", ".join(f"{id_}: '{status.outcome}'" for id_, status in sorted(statuses.items()))
    latencies = "queue_s, device_s, network_s, total_s"
    return (
        Check(
            "messages_up_to_date", "messages", "warning",
            "Status reports have been landed, but what the stream makes of them has not: rates lag behind.",
            "See whether `smspulse stream` runs and what it logs; it goes on where it stopped.",
            unit="seconds", most=settings.max_waiting_s,
        ),
        Check(
            "messages_complete", "messages", "critical",
            "Messages of which reports were landed are not there, though the stream has gone past them.",
            "Put back the file that was moved out of messages/, or run `smspulse rebuild`, which takes them from raw.",
            rows="""
                SELECT source || ':' || sms_id FROM raw_files ANTI JOIN latest USING (source, sms_id)
                WHERE kind = 'status' AND received_at > getvariable('recent')
            """,
        ),
        Check(
            "messages_in_log", "messages", "critical",
            "Messages rest on reports that are not in raw: webhooks were lost after the stream had read them.",
            "Put back the file that was moved out of raw/; else find who writes to sms.messages beside the stream.",
            rows="""
                SELECT source || ':' || sms_id FROM latest
                ANTI JOIN (SELECT source, sms_id FROM raw_files WHERE kind = 'status') USING (source, sms_id)
                WHERE first_seen_at > getvariable('recent')
            """,
        ),
        Check(
            "messages_end_as_told", "messages", "critical",
            "The outcome of messages is none that was reported of them: delivery rates recomputed from raw differ.",
            "`smspulse rebuild` lists them in rebuild_differences; bring stream and warehouse to one version.",
        ),
        Check(
            "messages_follow_from_log", "messages", "critical",
            "At its last run `smspulse rebuild` found other lifecycles in the raw webhooks than the stream had made.",
            "FROM rebuild_differences; after a change of SMSPULSE_STREAM_ settings, `smspulse rebuild --all`.",
            rows="SELECT message_key || ' ' || field FROM rebuild_differences",
        ),
        Check(
            "messages_offsets_unique", "messages", "critical",
            "Records of sms.messages were landed twice.",
            "Find the copied file in messages/ and move it out: names hold topic, partition and first offset.",
        ),
        Check(
            "messages_keys_unique", "messages", "critical",
            "A message is there more than once, under two keys or with one key for two: rates count it double.",
            "Find it by message_key, source and sms_id in messages, and who writes to sms.messages beside the stream.",
            rows="""
                SELECT message_key FROM messages
                GROUP BY message_key HAVING count(*) > 1 OR min(source || ':' || sms_id) <> message_key
            """,
        ),
        Check(
            "messages_whole", "messages", "critical",
            "Messages lack source, id, outcome or the time of their first report.",
            "Stream and warehouse are of different versions, or somebody else writes to sms.messages.",
            wrong="source IS NULL OR sms_id IS NULL OR is_ended IS NULL OR first_seen_at IS NULL OR version IS NULL",
        ),
        Check(
            "messages_outcomes_known", "messages", "critical",
            "Messages have an outcome that no rate knows.",
            "Stream and warehouse are of different versions: bring both to the same one.",
            unit="text", allowed=tuple(outcome.value for outcome in Outcome),
        ),
        Check(
            "messages_states_legal", "messages", "critical",
            "The outcome of messages is not the one that their deciding status stands for.",
            "See that stream and checks have the same SMSPULSE_STREAM_STATUS_MEANINGS; then as above.",
            wrong=f"""
                outcome NOT IN ('expired', 'unknown') AND outcome IN ({among(outcome.value for outcome in Outcome)})
                AND outcome IS DISTINCT FROM (MAP {{{outcomes}}})[last_status_id]
            """,
        ),
        Check(
            "messages_ends_clear", "messages", "critical",
            "is_ended, outcome and ended_at contradict each other, so delivered / ended is wrong.",
            "Stream and warehouse are of different versions, or somebody else writes to sms.messages.",
            wrong=f"""
                is_ended IS DISTINCT FROM outcome IN ({among(end.value for end in ENDS)})
                OR is_ended IS DISTINCT FROM (ended_at IS NOT NULL)
            """,
        ),
        Check(
            "messages_deliveries_clear", "messages", "critical",
            "delivered_at or failure_class is there for messages that it does not fit, or missing for others.",
            "Stream and warehouse are of different versions, or somebody else writes to sms.messages.",
            wrong=f"""
                (outcome = 'delivered') <> (delivered_at IS NOT NULL) OR failure_class IS NOT NULL
                AND outcome NOT IN ({among(failure.value for failure in FAILURES)})
            """,
        ),
        Check(
            "messages_latencies_not_negative", "messages", "critical",
            "A latency is negative. The stream gives null and a flag for a step that runs backwards.",
            "Find the messages by queue_s, device_s, network_s and total_s below 0; report it with their observations.",
            wrong=f"least({latencies}) < 0",
        ),
        Check(
            "messages_latencies_real", "messages", "warning",
            f"A latency is above {settings.max_latency_s:g} s: a clock jumped, or the unit is not seconds.",
            "Compare received_at of the message's rows in status_events.",
            wrong=f"greatest({latencies}) > {settings.max_latency_s}",
        ),
        Check(
            "messages_latencies_add_up", "messages", "critical",
            "total_s is not the time from first_seen_at to ended_at: percentiles of latency are wrong.",
            "Stream and warehouse are of different versions, or somebody changed the file.",
            wrong="abs(total_s - epoch(ended_at - first_seen_at)) > 0.01",
        ),
        Check(
            "messages_times_in_order", "messages", "critical",
            "Messages ended before their first report or after their last one.",
            "Compare first_seen_at, ended_at and last_seen_at with the observations of these messages.",
            # An expiry is a time without a report, so it may lie after the last one.
            wrong="""
                least(last_seen_at, ended_at, delivered_at) < first_seen_at
                OR (ended_at > last_seen_at AND outcome <> 'expired')
            """,
        ),
        Check(
            "messages_not_ahead", "messages", "warning",
            "Messages were reported in the future: a clock is wrong.",
            "Compare the clocks of this machine and of the ingest hosts; let them be set by NTP.",
            wrong=f"last_seen_at > getvariable('now') + INTERVAL '{settings.max_ahead_s} seconds'",
        ),
        Check(
            "messages_expire", "messages", "warning",
            f"Messages are open after {settings.max_open_h:g} h without a report: the stream's clock does not run.",
            "See whether `smspulse stream` runs, and that SMSPULSE_CHECK_MAX_OPEN_H is above its expire_after_h.",
            wrong=f"""
                NOT is_ended AND outcome <> 'incoming'
                AND last_seen_at < getvariable('now') - INTERVAL '{settings.max_open_h * 3600} seconds'
            """,
        ),
        Check(
            "messages_attempts_real", "messages", "critical",
            "Messages were tried less than once.",
            "Stream and warehouse are of different versions, or somebody else writes to sms.messages.",
            wrong="coalesce(attempts, 0) < 1",
        ),
        Check(
            "messages_observed", "messages", "critical",
            "Messages rest on no report at all.",
            "Find who writes to sms.messages beside the stream.",
            wrong="coalesce(len(observations), 0) = 0",
        ),
        Check(
            "messages_span_reports", "messages", "critical",
            "first_seen_at or last_seen_at is not that of the message's observations.",
            "Stream and warehouse are of different versions, or somebody changed the file.",
            on_rows=("ExpectColumnValuesToBeBetween", {"column": "first_off_s", "min_value": 0, "max_value": 0}),
        ),
        Check(
            "messages_reach_reports", "messages", "critical",
            "last_seen_at is not that of the message's observations.",
            "Stream and warehouse are of different versions, or somebody changed the file.",
            on_rows=("ExpectColumnValuesToBeBetween", {"column": "last_off_s", "min_value": 0, "max_value": 0}),
        ),
        Check(
            "messages_times_paired", "messages", "critical",
            "Among the newest versions one was last seen before it was first seen.",
            "Stream and warehouse are of different versions, or somebody changed the file.",
            on_rows=("ExpectColumnPairValuesAToBeGreaterThanB", {
                "column_A": "last_seen_at", "column_B": "first_seen_at", "or_equal": True,
            }),
        ),
        Check(
            "messages_versions_grow", "messages", "critical",
            "A version counts fewer facts than it has observations, so a newer one may look older.",
            "Stream and warehouse are of different versions, or somebody changed the file.",
            on_rows=("ExpectColumnValuesToBeBetween", {"column": "further_facts", "min_value": 0}),
        ),
        Check(
            "messages_agree", "messages", "warning",
            "Many recent messages were reported both delivered and failed in one attempt.",
            "FROM messages WHERE contradicted: if they are not of one device, ask the gateway.",
            unit="share", most=settings.max_contradicted_share,
        ),
        Check(
            "messages_volume", "messages", "warning",
            "An hour has far fewer or more messages than the same hour of the last four weeks.",
            "See whether the gateway's queue and the phones ran then, and whether ingest and the lander did.",
            unit="times", least=settings.min_volume, most=settings.max_volume,
        ),
    )  # fmt: skip


def _deadletters(settings: CheckSettings) -> tuple[Check, ...]:
    return (
        Check(
            "deadletters_explained", "deadletters", "critical",
            "Dead letters lack reason or origin, so nobody can find or replay what could not be read.",
            "Find who writes to sms.deadletters beside the stream.",
            wrong="reason IS NULL OR origin_topic IS NULL OR origin_partition IS NULL OR origin_offset IS NULL",
        ),
        Check(
            "deadletters_complete", "deadletters", "critical",
            "Webhooks that could not be read are no dead letters, though the stream has gone past them.",
            "Put back the file that was moved out of deadletters/; bring stream and lander to one version.",
            rows="""
                SELECT topic || ':' || "partition" || ':' || "offset" FROM raw_files
                WHERE kind = 'unreadable' AND ("partition", "offset") NOT IN (
                    SELECT (origin_partition, origin_offset) FROM deadletter_files WHERE origin_offset IS NOT NULL
                )
            """,
        ),
        Check(
            "deadletters_in_log", "deadletters", "critical",
            "Dead letters are of records that are not in raw: webhooks were lost after the stream had read them.",
            "Put back the file that was moved out of raw/.",
        ),
        Check(
            "deadletters_few", "deadletters", "warning",
            f"Many webhooks of the last {settings.recent_h:g} h were put aside, so they are in no rate.",
            "SELECT source, reason, count(*) FROM deadletters GROUP BY ALL; then look at who sends them.",
            unit="share", most=settings.max_unreadable_share,
        ),
    )  # fmt: skip


def _devices(settings: CheckSettings) -> tuple[Check, ...]:
    return (
        Check(
            "devices_heard", "devices", "warning",
            "A device has been silent for far longer than ever in the last eight days.",
            "FROM device_health WHERE device_id = …; look at the phone: power, network, SIM card, the gateway's app.",
            unit="times", most=settings.max_pause,
        ),
        Check(
            "devices_get_on", "devices", "warning",
            "Most recent messages of a device are open an hour after they began: it takes them and sends none.",
            "FROM stuck_messages WHERE device_id = …; restart the gateway's app on the phone.",
            unit="share", most=settings.max_stuck_share,
        ),
    )  # fmt: skip


def _delivery() -> tuple[Check, ...]:
    return (
        Check(
            "rates_in_range", "delivery", "critical",
            "A delivery rate is not a part of a whole: messages contradict themselves, or the view miscounts.",
            "If messages_ends_clear fails too, begin there; else remove smspulse.duckdb and start `smspulse land`.",
            unit="share", least=0, most=1,
        ),
        Check(
            "delivery_adds_up", "delivery", "critical",
            "The view of delivery by device counts other messages than there are.",
            "Remove smspulse.duckdb and start `smspulse land`, which writes the views anew.",
        ),
    )  # fmt: skip
