"""Exits with 0 if the server in this container is ready. Reads the server's environment variables."""

import os
import ssl
import sys
import urllib.error
import urllib.request


def url() -> str:
    scheme = "https" if os.environ.get("SPECVLM_SSL_CERTFILE") else "http"
    return f"{scheme}://127.0.0.1:{os.environ.get('SPECVLM_PORT', '8000')}/ready"


def main() -> int:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # we connect to ourselves
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    try:
        opener.open(url(), timeout=4).close()
    except (urllib.error.URLError, OSError) as error:
        print(f"not ready: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
