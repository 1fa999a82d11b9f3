"""Secrets: a run whose files want a token, a key or a signature leaves none of them anywhere, whatever goes wrong."""

import base64
import contextlib
import dataclasses
import datetime as dt
import json
import logging
import re
import urllib.parse

import pyarrow.parquet as pq
import pytest
from faulty_server import Server, serve
from s3_server import KEY, SECRET, Bucket

from pipeline.cli import run
from pipeline.finish import finish_run
from pipeline.planning import EmbedOptions, make_plan
from transforms import hosts, remote, signing, sigv4
from transforms.embed import embed_block, open_worker
from transforms.http import Fetcher, Retries
from transforms.inventory import read_header, read_tile, write_inventory
from transforms.receipts import DONE, FAILED
from transforms.regions import region_from_bbox
from transforms.scenes import S1, S2
from transforms.signing import Signer, Tokens
from transforms.tiles import plan_tile

TILE = "33TUL"
FEW = 2  # scenes of each sensor: the whole year would take minutes
SUBSCRIPTION, BEARER = "subscription-key-5f3a9c", "eyJh.bearer-token-77b1.sig"
SIGNATURE = "c2lnbmF0dXJlLW9mLXNhcw+/8="
SAS = f"se=2099-01-01&sig={urllib.parse.quote(SIGNATURE, safe='')}"
SECRETS = (SUBSCRIPTION, BEARER, SIGNATURE, KEY, SECRET)


def shapes_of(secret):
    """The ways in which a secret could be written."""
    for text in (secret, urllib.parse.quote(secret, safe=""), json.dumps(secret)[1:-1]):
        yield text.encode()
    yield base64.b64encode(secret.encode()).rstrip(b"=")


FORBIDDEN = [*(shape for secret in SECRETS for shape in shapes_of(secret)), b"Signature=", b"Bearer ", b"sig="]


class Places:
    """Three servers, each with its own kind of lock: SAS tokens, a bearer token, signed requests.

    Attributes:
      spoilt: path of a file -> function of the request that answers in its place. seen: secrets that came in.
    """

    def __init__(self, files):
        self.files, self.spoilt, self.seen = files, {}, set()
        self.azure, self.earthdata = Server({}), Server({})
        self.bucket = Bucket({f"/eodata{path}": b"" for path in files})
        self.azure.routes["/token/127/data"] = self._token
        for path in files:
            self.azure.routes[f"/data{path}"] = self._locked(path, self._has_sas)
            self.earthdata.routes[path] = self._locked(path, self._has_bearer)
            self.bucket.server.routes[f"/eodata{path}"] = self._locked(path, self._is_signed)

    def _locked(self, path, opens):
        def answer(seen):
            if not opens(seen):
                return 403, {}, b"locked"
            if path in self.spoilt:
                return self.spoilt[path](seen)
            data = self.files[path].read_bytes()
            first, last = (int(v) for v in re.fullmatch(r"bytes=(\d+)-(\d+)", seen.headers["range"]).groups())
            part = data[first : last + 1]
            head = {"ETag": '"1"', "Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(data)}"}
            return (206, head, part) if part else (416, {"Content-Range": f"bytes */{len(data)}"}, b"")

        return answer

    def _token(self, seen):
        self.seen.add(seen.headers.get("ocp-apim-subscription-key"))
        if "token" in self.spoilt:
            return self.spoilt["token"](seen)
        expiry = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=45)
        return 200, {}, json.dumps({"token": SAS, "msft:expiry": expiry.isoformat()}).encode()

    def _has_sas(self, seen):
        found = urllib.parse.parse_qs(urllib.parse.urlsplit(seen.path).query).get("sig", [""])[0]
        self.seen.add(found)
        return found == SIGNATURE

    def _has_bearer(self, seen):
        self.seen.add(seen.headers.get("authorization", "").removeprefix("Bearer "))
        return seen.headers.get("authorization") == f"Bearer {BEARER}"

    def _is_signed(self, seen):
        why = self.bucket._why_not(seen)
        self.seen |= set() if why else {KEY, SECRET}
        return not why

    @contextlib.contextmanager
    def open(self):
        servers = self.azure, self.earthdata, self.bucket.server
        with contextlib.ExitStack() as stack:
            for server in servers:
                stack.enter_context(serve(server))
            stack.enter_context(hosts.allowed(*(server.place for server in servers)))
            yield self

    def fetcher(self):
        retries = Retries(tries=2, bad_tries=2, first_s=0.0)
        fetch = Fetcher(retries)
        signer = Signer(
            Tokens(fetch.ask, f"{self.azure.url}/token", SUBSCRIPTION),
            azure=(self.azure.place,),
            earthdata=(self.earthdata.place,),
        )
        return Fetcher(retries, signer=signer)


def echo(status):
    """An answer that says all that it was asked with: in its body, its headers and its reason."""

    def answer(seen):
        said = f"{seen.path} {json.dumps(seen.headers)} {SUBSCRIPTION} {BEARER} {SIGNATURE} {SECRET}"
        return status, {"X-Echo": said, "Content-Type": "text/html", "WWW-Authenticate": said}, said.encode() * 9

    return answer


def forward(url):
    return lambda seen: (302, {"Location": url}, b"")


def wrong_range(seen):
    return 206, {"Content-Range": f"bytes {seen.path} {BEARER} {SIGNATURE}", "ETag": f'"{BEARER}"'}, SECRET.encode()


@pytest.fixture
def locked(world, tmp_path, monkeypatch):
    """Servers, and an inventory of files there: optical bands behind two kinds of lock, radar behind the third."""
    header = read_header(world.inv)
    kept = [s for s in read_tile(world.inv, TILE) if s.kept]
    scenes = [s for sensor in (S1, S2) for s in [s for s in kept if s.sensor == sensor][:FEW]]
    files = {f"/{a.href}": world.earth.folder / a.href for s in scenes for a in s.assets}
    with Places(files).open() as places:

        def moved(scene, number, asset):
            if scene.sensor != S2:
                return f"{places.earthdata.url}/{asset.href}"
            return f"s3://eodata/{asset.href}" if number % 2 else f"{places.azure.url}/data/{asset.href}"

        there = [
            dataclasses.replace(
                s, assets=tuple(dataclasses.replace(a, href=moved(s, k, a)) for k, a in enumerate(s.assets))
            )
            for s in scenes
        ]
        inv = tmp_path / "inv.parquet"
        write_inventory(inv, header.period, header.frozen, {TILE: there}, header.sources)
        monkeypatch.setenv(signing.KEY_VARIABLE, SUBSCRIPTION)
        monkeypatch.setenv(signing.ENDPOINT_VARIABLE, f"{places.azure.url}/token")
        monkeypatch.setenv(signing.EARTHDATA_VARIABLE, BEARER)
        monkeypatch.setenv(sigv4.ENDPOINT_VARIABLE, places.bucket.server.url)
        monkeypatch.setenv(sigv4.ID_VARIABLE, KEY)
        monkeypatch.setenv(sigv4.SECRET_VARIABLE, SECRET)
        remote.use_fetcher(places.fetcher())
        try:
            yield places, str(inv), there
        finally:
            remote.use_fetcher(None)


def everything(out):
    """(name, bytes) of every object of an output, names too; tables also as the text of their rows."""
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name, data = str(path.relative_to(out)), path.read_bytes()
        yield name, name.encode()
        yield name, data
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            yield name, f"{table.to_pylist()!r} {table.schema.metadata}".encode()
        elif path.suffix == ".json" and data:
            yield name, repr(json.loads(data)).encode()


def leaks(texts):
    return sorted({(name, bad) for name, data in texts for bad in FORBIDDEN if bad in data})


def faults(places, scenes):
    """(what is spoilt, with which answer) by kind of lock."""
    optical, radar = (next(s for s in scenes if s.sensor == sensor) for sensor in (S2, S1))
    paths = {"azure": optical.assets[0].href, "bucket": optical.assets[1].href, "earthdata": radar.assets[0].href}
    files = {k: f"/{v.partition('://')[2].partition('/')[2].removeprefix('data/')}" for k, v in paths.items()}
    elsewhere = f"https://elsewhere.example/x?sig={SIGNATURE}&token={BEARER}"
    with_name = f"https://{BEARER}@elsewhere.example/x"
    yield "token", echo(401)
    for kind in files:
        for answer in (echo(403), echo(500), echo(200), forward(elsewhere), forward(with_name), wrong_range):
            yield files[kind], answer


@pytest.mark.slow
def test_no_secret_is_left_in_the_output_or_said_by_the_program(world, locked, tmp_path, capfd, caplog):
    places, inv, scenes = locked
    out = tmp_path / "out"
    region = region_from_bbox(world.bbox)
    reasons = set()
    with caplog.at_level(logging.DEBUG):
        plan, _, _ = make_plan(inv, world.model, str(out), EmbedOptions(region=region, block_px=512))
        worker = open_worker(plan)
        task = plan_tile(plan, TILE)[0]
        for path, answer in faults(places, scenes):
            places.spoilt = {path: answer}
            remote.use_fetcher(places.fetcher())
            receipt = embed_block(worker, task)
            assert receipt.status == FAILED, path
            reasons.add(receipt.reason)
            finish_run(plan)
            assert pq.read_table(out / "failures.parquet").num_rows == 1
            assert leaks(everything(out)) == []
        assert len(reasons) >= 8, reasons
        remote.use_fetcher(places.fetcher())
        arguments = ["embed", inv, "--model", world.model, "--out", str(out), "--bbox", world.bbox, "--block", "512"]
        assert run(arguments) == 3
        places.spoilt = {}
        remote.use_fetcher(places.fetcher())
        assert run(arguments) == 0
        assert embed_block(worker, task).status == DONE or not plan_tile(plan, TILE)
        for verb in (["status"], ["report"], ["verify"], ["embed", inv, "--model", world.model, "--dry-run", "--out"]):
            assert run([*verb, str(out)]) == 0
    said = capfd.readouterr()
    assert leaks(everything(out)) == []
    assert leaks([("stdout", said.out.encode()), ("stderr", said.err.encode()), ("log", caplog.text.encode())]) == []
    assert set(SECRETS) <= places.seen, "every lock was opened with its key, or nothing is shown here"
    assert list(out.rglob("report.html")), "the page was among what was searched"


def test_the_search_finds_a_secret_in_a_table_a_name_and_a_text(tmp_path):
    import pyarrow as pa

    rows = [{"reason": f"HTTP 403 of https://x/?sig={SIGNATURE}"}] * 3
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "failures.parquet", compression="zstd")
    (tmp_path / "a.json").write_text(json.dumps({"a": SECRET}))
    (tmp_path / f"{KEY}.log").write_text("")
    assert {name for name, _ in leaks(everything(tmp_path))} == {"failures.parquet", "a.json", f"{KEY}.log"}
