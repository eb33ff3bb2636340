"""Fixtures that every test may ask for: real servers, one of each per run."""

from tests.kafka import kafka, kafka_found, own_kafka
from tests.postgres import own_postgres, postgres, postgres_found

__all__ = ["kafka", "kafka_found", "own_kafka", "own_postgres", "postgres", "postgres_found"]
