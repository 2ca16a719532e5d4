"""Validation of URLs in settings and options."""

from urllib.parse import urlsplit


def parse_http_url(text: str, *, assume_http: bool = False) -> str:
    """Return an http or https URL without a slash at its end.

    Args:
        text: A URL such as `https://sms.example.org`.
        assume_http: Accept `HOST:PORT`, the format of Prometheus' targets, and put `http://` before it.

    Raises:
        ValueError: The text is not such a URL. The error does not quote it, because it may contain a secret.
    """
    text = text.strip()
    if assume_http and "://" not in text:
        text = f"http://{text}"
    example = "http://HOST:PORT or HOST:PORT" if assume_http else "https://HOST/PATH"
    msg = f"it is not a URL of http or https: write {example}"
    try:
        parts = urlsplit(text)
        # `http:/host` would become `http://http:/host`, a host named http with an empty port.
        has_empty_port = parts.port is None and parts.netloc.endswith(":")
    # Such as a port above 65535.
    except ValueError as error:
        raise ValueError(msg) from error
    has_blank = any(not char.isprintable() or char.isspace() for char in text)
    if parts.scheme not in {"http", "https"} or not parts.hostname or has_empty_port or has_blank:
        raise ValueError(msg)
    return text.rstrip("/")


def parse_base_url(text: str, *, assume_http: bool = False) -> str:
    """Return a URL that a path can be appended to; arguments and errors as of `parse_http_url`.

    Raises:
        ValueError: The text is not such a URL, or has a query or a fragment.
    """
    url = parse_http_url(text, assume_http=assume_http)
    if "?" in url or "#" in url:
        msg = "a path is appended to it: leave out what begins with ? or #"
        raise ValueError(msg)
    return url
