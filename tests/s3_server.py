"""A loopback bucket that gives ranges to whoever signs as AWS says, with the answers that a test plants."""

import datetime as dt
import email.utils
import hashlib
import hmac
import re

from faulty_server import Server

KEY, SECRET = "TESTKEY1", "a/secret+of=tests"
AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/s3/aws4_request, SignedHeaders=([a-z0-9;-]+), "
    r"Signature=([0-9a-f]{64})"
)


class Bucket:
    """Objects by path ("/eodata/a.jp2"), and how the next requests are answered.

    Attributes:
      asked: (path, first byte, one past the last) of every request that was let in. refused: why others were not.
      plan: faults by number of the request, as functions of the right answer. clock: the server's.
    """

    def __init__(self, objects, clock=lambda: dt.datetime.now(dt.UTC)):
        self.objects, self.clock = dict(objects), clock
        self.tags = dict.fromkeys(objects, '"1"')
        self.asked, self.refused, self.plan = [], [], {}
        self.server = Server({})
        for path in objects:
            self.server.routes[path] = self._answer

    def _answer(self, seen):
        date = {"Date": email.utils.format_datetime(self.clock(), usegmt=True)}
        why = self._why_not(seen)
        if why:
            self.refused.append(why)
            return 403, {**date, "Content-Type": "application/xml"}, f"<Error><Code>{why}</Code></Error>".encode()
        path = seen.path.partition("?")[0]
        data = self.objects[path]
        start, stop = (int(v) for v in re.fullmatch(r"bytes=(\d+)-(\d+)", seen.headers["range"]).groups())
        stop = min(stop + 1, len(data))
        number = len(self.asked)
        self.asked.append((path, start, stop))
        head = {"ETag": self.tags[path], "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        return self.plan.get(number, lambda *answer: answer)(206, head, data[start:stop])

    def _why_not(self, seen):
        """The signature worked out again from what came, step by step as AWS's page says; "" where it is right."""
        match = AUTHORIZATION.fullmatch(seen.headers.get("authorization", ""))
        if not match:
            return "AccessDenied"
        key, day, region, names, said = match.groups()
        when = seen.headers.get("x-amz-date", "")
        if key != KEY:
            return "InvalidAccessKeyId"
        if not when.startswith(day) or not {"host", "x-amz-date", "x-amz-content-sha256"} <= set(names.split(";")):
            return "AuthorizationHeaderMalformed"
        then = dt.datetime.strptime(when, "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC)
        if abs((then - self.clock()).total_seconds()) > 900:
            return "RequestTimeTooSkewed"
        path, _, query = seen.path.partition("?")
        lines = ["GET", path, query, *(f"{n}:{seen.headers[n].strip()}" for n in names.split(";")), "", names]
        lines.append(seen.headers["x-amz-content-sha256"])
        request = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        text = "\n".join(["AWS4-HMAC-SHA256", when, f"{day}/{region}/s3/aws4_request", request])
        made = b"AWS4" + SECRET.encode()
        for word in (day, region, "s3", "aws4_request", text):
            made = hmac.new(made, word.encode(), hashlib.sha256).digest()
        return "" if hmac.compare_digest(made.hex(), said) else "SignatureDoesNotMatch"
