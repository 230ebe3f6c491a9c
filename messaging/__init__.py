"""Kafka: settings, consumers and producers, daily topics, what is told about them, and a broker for trials."""
