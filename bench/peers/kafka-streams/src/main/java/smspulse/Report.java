package smspulse;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonToken;
import java.io.IOException;
import java.time.LocalDateTime;
import java.time.ZoneOffset;
import java.util.regex.Pattern;

/** A status report, read as `gateway/payloads.py` reads it; of its generosity, only what the benchmark's records need. */
record Report(long smsId, int statusId, Long deviceId, Long channelId, Long sentAt, String recipient, long receivedAt) {
    private static final JsonFactory JSON = new JsonFactory();
    private static final Pattern PUNCTUATION = Pattern.compile("[\\s().\\-/]+");

    static Report parse(byte[] body, long receivedAt) throws IOException {
        long smsId = -1;
        int statusId = -1;
        Long deviceId = null;
        Long channelId = null;
        Long sentAt = null;
        String recipient = null;
        try (JsonParser parser = JSON.createParser(body)) {
            parser.nextToken();
            while (parser.nextToken() == JsonToken.FIELD_NAME) {
                String field = parser.currentName();
                boolean isNull = parser.nextToken() == JsonToken.VALUE_NULL;
                switch (field) {
                    case "sms_id" -> smsId = parser.getLongValue();
                    case "status_id" -> statusId = parser.getIntValue();
                    case "device_id" -> deviceId = isNull ? null : Long.valueOf(parser.getLongValue());
                    case "channel_id", "sim" -> channelId = isNull ? null : Long.valueOf(parser.getLongValue());
                    case "senttime" -> sentAt = isNull ? null : Long.valueOf(time(parser.getText()));
                    case "sendto" -> recipient = isNull ? null : PUNCTUATION.matcher(parser.getText()).replaceAll("");
                    default -> parser.skipChildren();
                }
            }
        }
        if (smsId < 0 || statusId < 0) {
            throw new IOException("no status report");
        }
        return new Report(smsId, statusId, deviceId, channelId, sentAt, recipient, receivedAt);
    }

    private static long time(String text) {
        return LocalDateTime.parse(text.replace(' ', 'T')).toInstant(ZoneOffset.UTC).toEpochMilli();
    }
}
