// Benthos with a Kafka output: http_server answers a webhook when Kafka has acknowledged it.
//
// Redpanda Connect has such an output, built on the same Kafka client.
package main

import (
	"context"

	_ "github.com/redpanda-data/benthos/v4/public/components/io"
	_ "github.com/redpanda-data/benthos/v4/public/components/pure"
	"github.com/redpanda-data/benthos/v4/public/service"
	"github.com/twmb/franz-go/pkg/kgo"
)

type output struct {
	seed, topic string
	client      *kgo.Client
}

func (o *output) Connect(ctx context.Context) (err error) {
	o.client, err = kgo.NewClient(
		kgo.SeedBrokers(o.seed),
		kgo.DefaultProduceTopic(o.topic),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerBatchCompression(kgo.Lz4Compression()),
	)
	return err
}

func (o *output) Write(ctx context.Context, message *service.Message) error {
	body, err := message.AsBytes()
	if err != nil {
		return err
	}
	structured, err := message.AsStructured()
	if err != nil {
		return err
	}
	key := []byte("bench:")
	if id, ok := structured.(map[string]any)["sms_id"].(interface{ String() string }); ok {
		key = append(key, id.String()...)
	}
	return o.client.ProduceSync(ctx, &kgo.Record{Key: key, Value: body}).FirstErr()
}

func (o *output) Close(ctx context.Context) error {
	if o.client != nil {
		o.client.Close()
	}
	return nil
}

func main() {
	spec := service.NewConfigSpec().Field(service.NewStringField("seed")).Field(service.NewStringField("topic"))
	err := service.RegisterOutput("kafka_acknowledged", spec,
		func(config *service.ParsedConfig, _ *service.Resources) (service.Output, int, error) {
			seed, err := config.FieldString("seed")
			if err != nil {
				return nil, 0, err
			}
			topic, err := config.FieldString("topic")
			return &output{seed: seed, topic: topic}, 1024, err
		})
	if err != nil {
		panic(err)
	}
	service.RunCLI(context.Background())
}
