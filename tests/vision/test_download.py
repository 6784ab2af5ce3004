"""Images from a server of our own, and every way in which one can misbehave."""

import http.server
import io
import threading
import time

import numpy as np
import pytest
from PIL import Image

from refvit.errors import ImageError
from refvit.vision import download
from refvit.vision.intake import expand, read

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def encode(image, format, **options):
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, format, **options)
    return file.getvalue()


def message(source, **options):
    with pytest.raises(ImageError) as caught:
        read(source, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        data = encode(PIXELS, "PNG")
        if self.path == "/missing":
            return self.send_error(404)
        if self.path.startswith("/to-"):
            self.send_response(302)
            self.send_header(
                "Location", {"/to-file": "file:///etc/passwd", "/to-ftp": "ftp://127.0.0.1/a"}.get(self.path, "/ok")
            )
            return self.end_headers()
        if self.path == "/hang":
            time.sleep(1)
        self.send_response(200)
        if self.path != "/endless":
            self.send_header("Content-Length", str({"/large": 10**6, "/short": 1000}.get(self.path, len(data))))
        self.end_headers()
        try:
            if self.path == "/trickle":
                for k in range(20):
                    self.wfile.write(data[k : k + 1])
                    time.sleep(0.05)
            elif self.path == "/endless":
                for _ in range(100):
                    self.wfile.write(bytes(2**12))
            else:
                self.wfile.write(data)
        except OSError:
            pass  # the client has gone

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as it:
        threading.Thread(target=it.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{it.server_address[1]}"
        it.shutdown()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_urls(server, monkeypatch):
    for path in ("/ok", "/to-ok", "/with a space/é.png"):
        picture = read(server + path, allow_url=True)
        np.testing.assert_array_equal(picture.pixels, PIXELS)
        assert picture.source == server + path
    assert "404" in message(server + "/missing", allow_url=True)
    assert "cannot be downloaded" in message(server + "/to-file", allow_url=True)
    assert "ftp" in message(server + "/to-ftp", allow_url=True)
    assert "of 1000 bytes" in message(server + "/short", allow_url=True)
    monkeypatch.setattr(download, "MAX_URL_BYTES", 2**16)
    for path in ("/large", "/endless"):
        assert "more than 65536 bytes" in message(server + path, allow_url=True)
    monkeypatch.setattr(download, "URL_SECONDS", 0.2)
    for path in ("/hang", "/trickle"):
        start = time.perf_counter()
        assert "cannot be downloaded" in message(server + path, allow_url=True)
        assert time.perf_counter() - start < 0.9


def test_urls_that_are_refused():
    url = "https://example.org/a.jpg"
    assert "allow_url=True" in message(url)
    with pytest.raises(ImageError, match="allow_url=True"):
        expand(url)
    for other in ("file:///etc/passwd", "ftp://example.org/a.jpg", "s3://bucket/a.jpg", "data:image/png;base64,AAAA"):
        assert "only http" in message(other, allow_url=True)
    assert "cannot be downloaded" in message("http://127.0.0.1:99999/a.jpg", allow_url=True)
    many, sources = expand(url, allow_url=True)
    assert not many
    assert list(sources) == [url]
