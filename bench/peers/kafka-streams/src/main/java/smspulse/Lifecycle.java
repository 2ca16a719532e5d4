package smspulse;

import com.fasterxml.jackson.core.JsonGenerator;
import java.io.IOException;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;

/** What follows from a message's facts: the rules of `streams/lifecycle.py`, written a second time. */
final class Lifecycle {
    private static final int PENDING = 1;
    private static final int ACCEPTED = 2;
    private static final int INCOMING = 5;
    private static final int SENT = 6;
    private static final int DELIVERED = 7;
    private static final int UNDELIVERED = 8;
    private static final int END_RANK = 4;

    private record Status(int rank, String outcome, String failureClass) {}

    private static final Map<Integer, Status> STATUSES = Map.ofEntries(
            Map.entry(PENDING, new Status(0, "pending", null)),
            Map.entry(3, new Status(1, "queued", null)),
            Map.entry(ACCEPTED, new Status(2, "accepted", null)),
            Map.entry(SENT, new Status(3, "sent", null)),
            Map.entry(DELIVERED, new Status(END_RANK, "delivered", null)),
            Map.entry(UNDELIVERED, new Status(END_RANK, "undelivered", "undelivered")),
            Map.entry(9, new Status(END_RANK, "not_sent", "generic")),
            Map.entry(10, new Status(END_RANK, "not_sent", "no_service")),
            Map.entry(11, new Status(END_RANK, "not_sent", "null_pdu")),
            Map.entry(12, new Status(END_RANK, "not_sent", "radio_off")),
            Map.entry(100, new Status(END_RANK, "not_permitted", "not_permitted")),
            Map.entry(101, new Status(END_RANK, "not_permitted", "not_permitted")));

    private static final Comparator<Facts.Observation> ORDER = Comparator.<Facts.Observation>comparingLong(o -> o.first)
            .thenComparingInt(o -> rank(o.statusId))
            .thenComparingInt(o -> o.statusId)
            .thenComparingLong(o -> o.deviceId == null ? -1 : o.deviceId)
            .thenComparingLong(o -> o.channelId == null ? -1 : o.channelId)
            .thenComparingLong(o -> o.sentAt == null ? -1 : o.sentAt);

    private Lifecycle() {}

    private static int rank(int statusId) {
        Status status = STATUSES.get(statusId);
        return status == null ? -1 : status.rank;
    }

    static void write(Facts facts, JsonGenerator json) throws IOException {
        facts.observations.sort(ORDER);
        Long deviceId = null;
        Long channelId = null;
        Integer winner = null;
        int attempts = 1;
        boolean contradicted = false;
        boolean reordered = false;
        boolean unknown = false;
        int known = facts.observations.size();
        long lastSeenAt = 0;
        Map<Integer, Long> attempt = new HashMap<>(); // first received by status, of the attempt under way
        Map<Integer, Long> decisive = attempt;
        Set<Integer> reported = new HashSet<>();
        Set<Integer> beforeFailure = Set.of();
        int furthest = -1;
        for (Facts.Observation each : facts.observations) {
            deviceId = each.deviceId != null ? each.deviceId : deviceId;
            channelId = each.channelId != null ? each.channelId : channelId;
            known += each.last > each.first ? 1 : 0;
            lastSeenAt = Math.max(lastSeenAt, each.last);
            Status status = STATUSES.get(each.statusId);
            if (status == null) {
                unknown |= each.statusId != INCOMING;
                continue;
            }
            boolean end = status.rank == END_RANK;
            if (!end && beforeFailure.contains(each.statusId)) {
                attempts++;
                attempt = new HashMap<>();
                beforeFailure = Set.of();
                furthest = -1;
            }
            if (attempt.putIfAbsent(each.statusId, each.first) == null && end) {
                contradicted |= decisive == attempt
                        && winner != null
                        && !STATUSES.get(winner).outcome.equals(status.outcome);
                winner = each.statusId;
                decisive = attempt;
            }
            reordered |= status.rank < furthest;
            furthest = Math.max(furthest, status.rank);
            reported.add(each.statusId);
            if (status.failureClass != null) {
                beforeFailure = new HashSet<>(reported);
            }
        }

        long firstSeenAt = facts.observations.get(0).first;
        List<String> flags = new ArrayList<>();
        if (known > facts.observations.size()) {
            flags.add("duplicated");
        }
        if (reordered) {
            flags.add("reordered");
        }
        if (unknown) {
            flags.add("unknown_status");
        }
        Long accepted = decisive.get(ACCEPTED);
        Long sent = decisive.get(SENT);
        Long delivered = decisive.get(DELIVERED);
        boolean beyondAccepted = sent != null || delivered != null || decisive.containsKey(UNDELIVERED);
        Double queue = step("queue", decisive.get(PENDING), accepted, beyondAccepted || accepted != null, flags);
        Double device = step("device", accepted, sent, beyondAccepted, flags);
        Double network = step("network", sent, delivered, delivered != null, flags);

        int statusId = winner != null ? winner : open(facts.observations, attempt);
        Status status = STATUSES.get(statusId);
        String outcome = status != null ? status.outcome : statusId == INCOMING ? "incoming" : "unknown";
        Long endedAt = winner == null ? null : decisive.get(winner);

        json.writeStartObject();
        json.writeStringField("source", facts.source);
        json.writeNumberField("sms_id", facts.smsId);
        json.writeStringField("outcome", outcome);
        json.writeStringField("failure_class", winner == null ? null : status.failureClass);
        json.writeNumberField("last_status_id", statusId);
        json.writeBooleanField("is_ended", winner != null);
        write(json, "device_id", deviceId);
        write(json, "channel_id", channelId);
        json.writeStringField("recipient", facts.recipient);
        json.writeNumberField("first_seen_at", firstSeenAt);
        json.writeNumberField("last_seen_at", lastSeenAt);
        write(json, "ended_at", endedAt);
        write(json, "delivered_at", outcome.equals("delivered") ? endedAt : null);
        json.writeNullField("expired_at"); // no message is silent for long here
        json.writeNumberField("attempts", attempts);
        json.writeBooleanField("contradicted", contradicted);
        json.writeArrayFieldStart("flags");
        for (String flag : flags) {
            json.writeString(flag);
        }
        json.writeEndArray();
        write(json, "queue_s", queue);
        write(json, "device_s", device);
        write(json, "network_s", network);
        write(json, "total_s", endedAt == null ? null : Double.valueOf((endedAt - firstSeenAt) / 1000.0));
        json.writeNumberField("version", known + (facts.recipient != null ? 1 : 0));
        json.writeArrayFieldStart("observations");
        for (Facts.Observation each : facts.observations) {
            json.writeStartArray();
            json.writeNumber(each.statusId);
            write(json, each.deviceId);
            write(json, each.channelId);
            write(json, each.sentAt);
            json.writeNumber(each.first);
            json.writeNumber(each.last);
            json.writeEndArray();
        }
        json.writeEndArray();
        json.writeEndObject();
    }

    /** The furthest step of the attempt under way; without one, the newest report. */
    private static int open(List<Facts.Observation> observations, Map<Integer, Long> attempt) {
        if (!attempt.isEmpty()) {
            return attempt.keySet().stream().max(Comparator.comparingInt(Lifecycle::rank)).get();
        }
        boolean incoming = observations.stream().anyMatch(each -> each.statusId == INCOMING);
        return incoming ? INCOMING : observations.get(observations.size() - 1).statusId;
    }

    private static Double step(String name, Long start, Long end, boolean reached, List<String> flags) {
        if (start == null || end == null) {
            if (reached) {
                flags.add(name + "_missing");
            }
            return null;
        }
        if (end < start) {
            flags.add(name + "_backwards");
            return null;
        }
        return (end - start) / 1000.0;
    }

    private static void write(JsonGenerator json, String field, Number value) throws IOException {
        json.writeFieldName(field);
        write(json, value);
    }

    private static void write(JsonGenerator json, Number value) throws IOException {
        if (value == null) {
            json.writeNull();
        } else if (value instanceof Double seconds) {
            json.writeNumber(seconds.doubleValue());
        } else {
            json.writeNumber(value.longValue());
        }
    }
}
