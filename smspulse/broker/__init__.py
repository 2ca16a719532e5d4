"""The embedded broker: one node of Apache Kafka, or one in memory; its download, configuration and login."""
