"""The Parquet sink: records of Kafka become files, each offset range exactly once."""
