package smspulse;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonToken;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.util.ArrayList;
import java.util.List;
import java.util.Objects;
import org.apache.kafka.common.serialization.Deserializer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.serialization.Serializer;

/** All that is known of one message; stored and sent as the version that follows from it. */
final class Facts {
    private static final JsonFactory JSON = new JsonFactory();

    /** Reports that agree in status, device, channel and senttime, and when the first and last was received. */
    static final class Observation {
        final int statusId;
        final Long deviceId;
        final Long channelId;
        final Long sentAt;
        long first;
        long last;

        Observation(int statusId, Long deviceId, Long channelId, Long sentAt, long first, long last) {
            this.statusId = statusId;
            this.deviceId = deviceId;
            this.channelId = channelId;
            this.sentAt = sentAt;
            this.first = first;
            this.last = last;
        }
    }

    String source;
    long smsId;
    String recipient;
    final List<Observation> observations = new ArrayList<>(5);

    Facts add(String key, Report report) {
        source = key.substring(0, key.lastIndexOf(':'));
        smsId = report.smsId();
        if (report.recipient() != null && (recipient == null || report.recipient().compareTo(recipient) < 0)) {
            recipient = report.recipient();
        }
        for (Observation known : observations) {
            if (known.statusId == report.statusId()
                    && Objects.equals(known.deviceId, report.deviceId())
                    && Objects.equals(known.channelId, report.channelId())
                    && Objects.equals(known.sentAt, report.sentAt())) {
                known.first = Math.min(known.first, report.receivedAt());
                known.last = Math.max(known.last, report.receivedAt());
                return this;
            }
        }
        long at = report.receivedAt();
        observations.add(
                new Observation(report.statusId(), report.deviceId(), report.channelId(), report.sentAt(), at, at));
        return this;
    }

    static Serde<Facts> serde() {
        Serializer<Facts> serializer = (topic, facts) -> facts == null ? null : facts.toVersion();
        Deserializer<Facts> deserializer = (topic, bytes) -> bytes == null ? null : ofVersion(bytes);
        return Serdes.serdeFrom(serializer, deserializer);
    }

    private byte[] toVersion() {
        ByteArrayOutputStream bytes = new ByteArrayOutputStream(768);
        try (var json = JSON.createGenerator(bytes)) {
            Lifecycle.write(this, json);
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
        return bytes.toByteArray();
    }

    private static Facts ofVersion(byte[] bytes) {
        Facts facts = new Facts();
        try (JsonParser parser = JSON.createParser(bytes)) {
            parser.nextToken();
            while (parser.nextToken() == JsonToken.FIELD_NAME) {
                String field = parser.currentName();
                parser.nextToken();
                switch (field) {
                    case "source" -> facts.source = parser.getText();
                    case "sms_id" -> facts.smsId = parser.getLongValue();
                    case "recipient" -> facts.recipient = parser.getValueAsString();
                    case "observations" -> readObservations(parser, facts.observations);
                    default -> parser.skipChildren();
                }
            }
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
        return facts;
    }

    private static void readObservations(JsonParser parser, List<Observation> observations) throws IOException {
        Long[] parts = new Long[6];
        while (parser.nextToken() == JsonToken.START_ARRAY) {
            for (int i = 0; i < parts.length; i++) {
                parts[i] = parser.nextToken() == JsonToken.VALUE_NULL ? null : Long.valueOf(parser.getLongValue());
            }
            parser.nextToken();
            observations.add(
                    new Observation(parts[0].intValue(), parts[1], parts[2], parts[3], parts[4], parts[5]));
        }
    }
}
