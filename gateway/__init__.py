"""The domain: what gateways send, what it means, and how records travel. Pure: no input, no output."""
