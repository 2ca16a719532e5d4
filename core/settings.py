"""Base of all settings."""

from pydantic_settings import BaseSettings, SettingsConfigDict


class EnvironmentSettings(BaseSettings):
    """Settings that are read from environment variables when a process starts.

    A variable is the prefix of a class and the field's name in capitals. The text below a field is its description.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
