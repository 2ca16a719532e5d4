"""Password of HTTP Basic authentication."""

import base64


def basic_auth_password(authorization: str) -> str:
    """Return the password of a header `Authorization`; empty if the header has none or is invalid (RFC 7617)."""
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(credentials, validate=True).decode(errors="replace").partition(":")[2]
    except ValueError:
        return ""
