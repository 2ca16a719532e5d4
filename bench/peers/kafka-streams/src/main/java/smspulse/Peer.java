package smspulse;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.Properties;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.processor.api.ContextualFixedKeyProcessor;
import org.apache.kafka.streams.processor.api.FixedKeyRecord;
import org.apache.kafka.streams.state.KeyValueStore;

/**
 * The stream as a Kafka Streams program: exactly once, one thread, state in RocksDB with a changelog, an output topic.
 *
 * <p>Its aggregation is cached, as it is by default: like our worker, it emits the newest version of each message that
 * changed between two commits, not one a report.
 */
public final class Peer {
    private Peer() {}

    /** Reads a report; `received_at` is in a header, which only a processor sees. */
    private static final class Reader extends ContextualFixedKeyProcessor<String, byte[], Report> {
        @Override
        public void process(FixedKeyRecord<String, byte[]> message) {
            byte[] header = message.headers().lastHeader("received_at").value();
            long receivedAt = Long.parseLong(new String(header, StandardCharsets.US_ASCII));
            try {
                context().forward(message.withValue(Report.parse(message.value(), receivedAt)));
            } catch (IOException error) {
                throw new IllegalStateException(error); // the benchmark writes readable records alone
            }
        }
    }

    /** Arguments: bootstrap servers, group, input topic, output topic, state folder. */
    public static void main(String[] arguments) {
        Properties options = new Properties();
        options.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, arguments[0]);
        options.put(StreamsConfig.APPLICATION_ID_CONFIG, arguments[1]);
        options.put(StreamsConfig.STATE_DIR_CONFIG, arguments[4]);
        options.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        options.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 1);
        options.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 64L << 20);
        options.put(StreamsConfig.producerPrefix(ProducerConfig.COMPRESSION_TYPE_CONFIG), "lz4");
        options.put(StreamsConfig.producerPrefix(ProducerConfig.BATCH_SIZE_CONFIG), 256 << 10);
        options.put(StreamsConfig.consumerPrefix(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG), "earliest");
        options.put(StreamsConfig.consumerPrefix(ConsumerConfig.MAX_POLL_RECORDS_CONFIG), 4000);

        StreamsBuilder builder = new StreamsBuilder();
        builder.stream(arguments[2], Consumed.with(Serdes.String(), Serdes.ByteArray()))
                .processValues(Reader::new)
                .groupByKey(Grouped.keySerde(Serdes.String()))
                .aggregate(
                        Facts::new,
                        (key, report, facts) -> facts.add(key, report),
                        Materialized.<String, Facts, KeyValueStore<Bytes, byte[]>>as("messages")
                                .withKeySerde(Serdes.String())
                                .withValueSerde(Facts.serde()))
                .toStream()
                .to(arguments[3], Produced.with(Serdes.String(), Facts.serde()));

        KafkaStreams streams = new KafkaStreams(builder.build(), options);
        streams.setUncaughtExceptionHandler(error ->
                StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse.SHUTDOWN_APPLICATION);
        streams.setStateListener((now, before) -> {
            if (now == KafkaStreams.State.ERROR) {
                Runtime.getRuntime().halt(1);
            }
        });
        Runtime.getRuntime().addShutdownHook(new Thread(streams::close));
        streams.start();
    }
}
