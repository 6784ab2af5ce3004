"""Images from the network, within limits of size and time, and only over http and https."""

from __future__ import annotations

import time

from refvit.errors import ImageError
from refvit.vision.pixels import one_line

MAX_URL_BYTES = 2**26
URL_SECONDS = 30.0  # for each answer of the server, and for the whole body


def download(url: str, name: str) -> bytes:
    """The body of `url`; `name` is what error messages call it. ImageError for whatever goes wrong."""
    import urllib.error  # 0.05 s that a program without URLs should not pay
    import urllib.parse
    import urllib.request

    if not url.lower().startswith(("http://", "https://")):
        raise ImageError(f"{name}: only http:// and https:// URLs are read; for a local file give its path")
    # An opener without the file, ftp and data handlers, so that no redirect leads there.
    opener = urllib.request.OpenerDirector()
    web = urllib.request
    for handler in (web.ProxyHandler, web.HTTPHandler, web.HTTPSHandler, web.HTTPRedirectHandler):
        opener.add_handler(handler())
    for rest in (web.HTTPDefaultErrorHandler, web.HTTPErrorProcessor, web.UnknownHandler):
        opener.add_handler(rest())
    quoted = urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")
    request = urllib.request.Request(quoted, headers={"User-Agent": "refvit"})
    end = time.monotonic() + URL_SECONDS
    data = bytearray()
    try:
        with opener.open(request, timeout=URL_SECONDS) as answer:
            expected = int(answer.headers.get("Content-Length", 0))
            while max(len(data), expected) <= MAX_URL_BYTES and (block := answer.read1(2**16)):
                data += block
                if time.monotonic() > end:
                    raise TimeoutError(f"not complete after {URL_SECONDS:g} s")
    except Exception as error:  # URLError, HTTPException, ValueError, UnicodeError ...
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
        raise ImageError(f"{name}: cannot be downloaded ({one_line(error)}); check the URL, or the connection") from error
    if max(len(data), expected) > MAX_URL_BYTES:
        raise ImageError(f"{name}: more than {MAX_URL_BYTES} bytes; download it and give the path")
    if len(data) < expected:
        raise ImageError(f"{name}: the connection ended after {len(data)} of {expected} bytes; try again")
    return bytes(data)
