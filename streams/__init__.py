"""The Faust worker: from raw webhooks to the lifecycle of every message."""
