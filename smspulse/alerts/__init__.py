"""The ways out of alerts: what is told on `sms.alerts`, told to people."""
