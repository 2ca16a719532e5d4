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
        List<Attempt> attempts = new ArrayList<>(List.of(new Attempt(0)));
        Attempt decisive = attempts.get(0);
        Long deviceId = null; // the newest ones that were named
        Long channelId = null;
        boolean ended = false; // since the current attempt began, at this device and channel
        Long endedDeviceId = null;
        Long endedChannelId = null;
        boolean contradicted = false;
        boolean reordered = false;
        boolean unknown = false;
        int known = facts.observations.size();
        long lastSeenAt = 0;
        Set<Integer> reported = new HashSet<>();
        Set<Integer> beforeFailure = Set.of();
        for (int position = 0; position < facts.observations.size(); position++) {
            Facts.Observation each = facts.observations.get(position);
            known += each.last > each.first ? 1 : 0;
            lastSeenAt = Math.max(lastSeenAt, each.last);
            Status status = STATUSES.get(each.statusId);
            boolean end = status != null && status.rank == END_RANK;
            boolean elsewhere =
                    ended && (differ(each.deviceId, endedDeviceId) || differ(each.channelId, endedChannelId));
            if (status != null && (elsewhere || (!end && beforeFailure.contains(each.statusId)))) {
                attempts.add(new Attempt(position));
                beforeFailure = Set.of();
                ended = false;
            }
            Attempt attempt = attempts.get(attempts.size() - 1);
            if (each.deviceId != null) {
                deviceId = attempt.newestDeviceId = each.deviceId;
            }
            if (each.channelId != null) {
                channelId = attempt.newestChannelId = each.channelId;
            }
            if (status == null) {
                unknown |= each.statusId != INCOMING;
                continue;
            }
            if (attempt.first.putIfAbsent(each.statusId, each.first) == null && end) {
                contradicted |= attempt.end != null && !STATUSES.get(attempt.end).outcome.equals(status.outcome);
                attempt.end = each.statusId;
                attempt.endDeviceId = each.deviceId;
                attempt.endChannelId = each.channelId;
                decisive = attempt;
            }
            reordered |= status.rank < attempt.furthest;
            attempt.furthest = Math.max(attempt.furthest, status.rank);
            reported.add(each.statusId);
            if (end) {
                ended = true;
                endedDeviceId = deviceId;
                endedChannelId = channelId;
            }
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
        Double[] latencies = decisive.latencies(flags);
        Integer winner = decisive.end;
        int statusId = winner != null ? winner : open(facts.observations, decisive.first);
        Status status = STATUSES.get(statusId);
        String outcome = status != null ? status.outcome : statusId == INCOMING ? "incoming" : "unknown";
        Long endedAt = decisive.endedAt();

        json.writeStartObject();
        json.writeStringField("source", facts.source);
        json.writeNumberField("sms_id", facts.smsId);
        json.writeStringField("outcome", outcome);
        json.writeStringField("failure_class", winner == null ? null : status.failureClass);
        json.writeNumberField("last_status_id", statusId);
        json.writeBooleanField("is_ended", winner != null);
        write(json, "device_id", decisive.deviceId());
        write(json, "channel_id", decisive.channelId());
        json.writeStringField("recipient", facts.recipient);
        json.writeNumberField("first_seen_at", firstSeenAt);
        json.writeNumberField("last_seen_at", lastSeenAt);
        write(json, "ended_at", endedAt);
        write(json, "delivered_at", outcome.equals("delivered") ? endedAt : null);
        json.writeNullField("expired_at"); // no message is silent for long here
        json.writeNumberField("attempts", attempts.size());
        json.writeBooleanField("contradicted", contradicted);
        json.writeArrayFieldStart("flags");
        for (String flag : flags) {
            json.writeString(flag);
        }
        json.writeEndArray();
        write(json, "queue_s", latencies[0]);
        write(json, "device_s", latencies[1]);
        write(json, "network_s", latencies[2]);
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
        if (attempts.size() > 1) {
            json.writeArrayFieldStart("attempt_details");
            for (int number = 0; number < attempts.size(); number++) {
                boolean isLast = number + 1 == attempts.size();
                int until = isLast ? facts.observations.size() : attempts.get(number + 1).begin;
                writeDetails(attempts.get(number), facts.observations.subList(attempts.get(number).begin, until), json);
            }
            json.writeEndArray();
        }
        json.writeEndObject();
    }

    private static void writeDetails(Attempt attempt, List<Facts.Observation> observations, JsonGenerator json)
            throws IOException {
        int statusId = attempt.end != null ? attempt.end : open(observations, attempt.first);
        Status status = STATUSES.get(statusId);
        json.writeStartArray();
        write(json, attempt.deviceId());
        write(json, attempt.channelId());
        json.writeNumber(observations.get(0).first);
        json.writeNumber(observations.stream().mapToLong(each -> each.last).max().getAsLong());
        write(json, attempt.endedAt());
        json.writeString(status.outcome);
        json.writeString(status.failureClass);
        json.writeNumber(statusId);
        for (Double latency : attempt.latencies(new ArrayList<>())) {
            write(json, latency);
        }
        json.writeEndArray();
    }

    private static boolean differ(Long named, Long known) {
        return named != null && known != null && !named.equals(known);
    }

    private static final class Attempt {
        final int begin; // position of its first observation
        final Map<Integer, Long> first = new HashMap<>(); // first received by status
        Integer end;
        Long endDeviceId;
        Long endChannelId;
        Long newestDeviceId;
        Long newestChannelId;
        int furthest = -1;

        Attempt(int begin) {
            this.begin = begin;
        }

        Long deviceId() {
            return endDeviceId != null ? endDeviceId : newestDeviceId;
        }

        Long channelId() {
            return endChannelId != null ? endChannelId : newestChannelId;
        }

        Long endedAt() {
            return end == null ? null : first.get(end);
        }

        Double[] latencies(List<String> flags) {
            Long accepted = first.get(ACCEPTED);
            Long sent = first.get(SENT);
            Long delivered = first.get(DELIVERED);
            boolean beyondAccepted = sent != null || delivered != null || first.containsKey(UNDELIVERED);
            return new Double[] {
                step("queue", first.get(PENDING), accepted, beyondAccepted || accepted != null, flags),
                step("device", accepted, sent, beyondAccepted, flags),
                step("network", sent, delivered, delivered != null, flags)
            };
        }
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
