"""The application: command line, embedded broker, supervisor, alerting, live page and simulator."""
