import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transforms import remote
from transforms.cog import Layout, assemble, encode_tile
from transforms.fetching import FetchError, Piece, Version
from transforms.remote import HEAD_BYTES, HeaderCache, Reads, assumed_reads, plan_reads, read_window
from transforms.scenes import Asset
from transforms.tiff import Damaged, NotACog, Window, parse_header

URL = "https://h/a/B05.tif"
FEW = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Shelf:
    """Files in memory behind `Fetch`, with the answers that a test plants: `faults` by number of the request."""

    def __init__(self, **files):
        self.files = {f"https://h/a/{name}.tif": data for name, data in files.items()}
        self.tag = "v1"
        self.asked = []
        self.faults = {}
        self.checks = True  # whether it keeps its promise to look at the version

    def put(self, data, tag, url=URL):
        self.files[url], self.tag = data, tag

    def __call__(self, url, start, stop, version):
        number = len(self.asked)
        self.asked.append((start, stop))
        fault = self.faults.get(number, lambda: None)()
        if isinstance(fault, Piece):
            return fault
        data = self.files[url.partition("?")[0]]
        now = Version(len(data), self.tag)
        if self.checks and version not in (None, now):
            raise FetchError("changed", "the file is another one by now")
        return Piece(data[start:stop], now)

    @property
    def moved_bytes(self):
        return sum(min(stop, *(len(data) for data in self.files.values())) - start for start, stop in self.asked)


def cog(pixels, tile_px=16, **options):
    """The bytes of a COG of `pixels` (h, w), header first and tiles in rows."""
    h, w = pixels.shape
    transform = (20.0, 0.0, 399960.0, 0.0, -20.0, 4500000.0)
    layout = Layout(h, w, 1, str(pixels.dtype), tile_px, 0, 32633, transform, codec="deflate", **options)
    tiles = {}
    for i in range(layout.tiles_down):
        for j in range(layout.tiles_across):
            part = np.zeros((tile_px, tile_px, 1), pixels.dtype)
            cut = pixels[i * tile_px : (i + 1) * tile_px, j * tile_px : (j + 1) * tile_px]
            part[: cut.shape[0], : cut.shape[1], 0] = cut
            tiles[i, j] = encode_tile(part, layout)
    return assemble(layout, tiles)


def some_pixels(shape=(400, 300), seed=1):
    return np.random.default_rng(seed).integers(1, 9000, shape).astype(np.uint16)


@pytest.fixture
def cache():
    return HeaderCache()


def test_a_window_is_what_rasterio_reads_of_the_same_file(tmp_path, cache):
    (tmp_path / "f.tif").write_bytes(cog(some_pixels()))
    window = Window(30, 41, 200, 190)
    got, header = read_window(URL, window, Shelf(B05=(tmp_path / "f.tif").read_bytes()), headers=cache)
    with rasterio.open(tmp_path / "f.tif") as file:
        np.testing.assert_array_equal(got, file.read(1)[30:230, 41:231])
        assert header.transform == tuple(file.transform)[:6]


def big_band():
    """A band of five by five tiles of 1024 px, with one picture in each: quick to make, as long as a real one."""
    pixels = np.tile(some_pixels((1024, 1024)), (5, 5))
    layout = Layout(5120, 5120, 1, "uint16", 1024, 0, 32633, (10.0, 0.0, 0.0, 0.0, -10.0, 0.0), codec="deflate")
    tile = encode_tile(pixels[:1024, :1024, None], layout)
    return pixels, assemble(layout, {(i, j): tile for i in range(5) for j in range(5)})


def test_a_block_of_a_cog_with_1024_px_tiles_is_three_requests_and_the_next_one_two(cache):
    pixels, data = big_band()
    shelf = Shelf(B05=data)
    for window, requests in ((Window(0, 0, 2048, 2048), 3), (Window(2048, 2048, 2048, 2048), 2)):
        shelf.asked.clear()
        got, _ = read_window(URL, window, shelf, headers=cache)
        row, col, height, width = window
        np.testing.assert_array_equal(got, pixels[row : row + height, col : col + width])
        assert len(shelf.asked) == requests
        assert shelf.moved_bytes <= 1.1 * 4 * (len(data) / 25)


@settings(FEW, max_examples=40)
@given(st.data())
def test_what_is_planned_is_what_is_asked_for(draw):
    pixels = some_pixels((200, 170))
    pixels[32:96] = 0  # four rows of tiles that are not stored
    shelf, cache = Shelf(B05=cog(pixels)), HeaderCache()
    r, c = draw.draw(st.integers(0, 199)), draw.draw(st.integers(0, 169))
    window = Window(r, c, draw.draw(st.integers(1, 200 - r)), draw.draw(st.integers(1, 170 - c)))
    header = parse_header(shelf.files[URL], len(shelf.files[URL]))
    for known in (False, True):
        shelf.asked.clear()
        planned = plan_reads(header, window, known)
        read_window(URL, window, shelf, headers=cache)
        assert planned.requests == len(shelf.asked)
        assert planned.moved_bytes == sum(stop - start for start, stop in shelf.asked)


def test_needed_bytes_are_the_share_of_each_tile_that_lies_in_the_window(cache):
    data = cog(some_pixels((40, 40)))
    header = parse_header(data, len(data))
    # All of tile 0,0; half of 0,1; of 0,2, that is 8 px wide, a quarter of what it has.
    planned = plan_reads(header, Window(0, 0, 16, 16), known=True)
    assert planned == Reads(1, int(header.counts[0, 0]), int(header.counts[0, 0]))
    half = plan_reads(header, Window(0, 16, 8, 16), known=True)
    assert (half.moved_bytes, half.needed_bytes) == (int(header.counts[0, 1]), round(float(header.counts[0, 1]) / 2))
    edge = plan_reads(header, Window(0, 32, 16, 2), known=True)
    assert edge.needed_bytes == round(float(header.counts[0, 2]) / 4)
    whole = plan_reads(header, Window(0, 0, 40, 40), known=True)
    assert whole.needed_bytes == int(header.counts.sum())


def an_asset(height_px=10980, width_px=10980, **others):
    return Asset("B02", URL, 32633, (10.0, 0.0, 0.0, 0.0, -10.0, 0.0), height_px, width_px, **others)


def test_without_a_header_the_item_tells_what_a_block_costs():
    # Tiles of 1024 px: nothing is paid for twice by blocks of 2048 px on them, three quarters by windows between them.
    on = assumed_reads(an_asset(size_bytes=160_000_000), Window(2048, 4096, 2048, 2048))
    assert on.requests == 3
    assert on.moved_bytes - HEAD_BYTES == on.needed_bytes == round(160e6 * 0.75 * 2048**2 / 10980**2)
    off = assumed_reads(an_asset(), Window(512, 512, 1024, 1024), known=True)
    assert off.requests == 2
    assert off.moved_bytes == pytest.approx(4 * off.needed_bytes, abs=4)
    corner = assumed_reads(an_asset(), Window(10240, 10240, 740, 740), known=True)
    assert corner.moved_bytes == corner.needed_bytes == round(740**2 * remote.BAND_BYTES_A_PIXEL * 0.75)


def test_what_is_assumed_is_near_what_is_planned():
    _, data = big_band()
    header = parse_header(data, len(data))
    asset = an_asset(5120, 5120, size_bytes=round(len(data) / remote.FULL_SHARE))  # this file has no overviews
    for window in (Window(0, 0, 2048, 2048), Window(100, 1000, 2048, 900), Window(4096, 4096, 1024, 1024)):
        assumed, planned = assumed_reads(asset, window), plan_reads(header, window, known=False)
        assert assumed.requests == planned.requests
        assert assumed.moved_bytes == pytest.approx(planned.moved_bytes, rel=0.01)
        assert assumed.needed_bytes == pytest.approx(planned.needed_bytes, rel=0.01)


@pytest.mark.parametrize("window", [(-1, 0, 2, 2), (0, 10979, 2, 2), (0, 0, 0, 2), (0, 0, 2, 0)])
def test_a_window_that_leaves_the_raster_cannot_be_planned(window):
    with pytest.raises(ValueError, match="is not within 10980 x 10980 px"):
        assumed_reads(an_asset(), Window(*window))


def test_reads_add_up():
    assert Reads(1, 20, 3) + Reads(2, 5, 4) == Reads(3, 25, 7)


# Headers


def test_a_long_header_is_read_on_and_only_once(cache):
    pixels = some_pixels((1600, 1600))  # 10,000 tiles of 16 px: 120 KB and more of places
    shelf = Shelf(B05=cog(pixels))
    for requests in (3, 1):
        shelf.asked.clear()
        got, header = read_window(URL, Window(800, 800, 16, 16), shelf, headers=cache)
        np.testing.assert_array_equal(got, pixels[800:816, 800:816])
        assert len(shelf.asked) == requests
    assert header.stop > 2 * HEAD_BYTES


def test_a_file_shorter_than_the_first_guess_is_read(cache):
    pixels = some_pixels((20, 20))
    assert len(cog(pixels)) < HEAD_BYTES
    np.testing.assert_array_equal(
        read_window(URL, Window(0, 0, 20, 20), Shelf(B05=cog(pixels)), headers=cache)[0], pixels
    )


def test_without_a_window_the_header_alone_is_read(cache):
    shelf = Shelf(B05=cog(some_pixels()))
    pixels, header = read_window(URL, None, shelf, headers=cache)
    assert pixels is None
    assert (header.height_px, header.width_px) == (400, 300)
    assert shelf.asked == [(0, HEAD_BYTES)]


def test_a_newly_signed_href_finds_the_same_header(cache):
    shelf = Shelf(B05=cog(some_pixels()))
    for signature in ("one", "two"):
        read_window(f"{URL}?sig={signature}", None, shelf, headers=cache)
    assert len(shelf.asked) == 1
    assert cache.find(URL) is not None


def test_many_threads_that_want_one_header_fetch_it_once(cache):
    threads = 16
    shelf = Shelf(B05=cog(some_pixels()))
    here = threading.Barrier(threads + 1)
    shelf.faults = {0: here.wait}  # the one that fetches waits until all others have asked

    def late():
        here.wait()
        return cache.get(URL, shelf)

    with ThreadPoolExecutor(threads + 1) as pool:
        found = [pool.submit(cache.get, URL, shelf), *[pool.submit(late) for _ in range(threads)]]
        known = {id(one.result()) for one in found}
    assert len(known) == 1
    assert len(shelf.asked) == 1


def test_an_error_reaches_all_that_waited_and_is_not_kept(cache):
    shelf = Shelf(B05=cog(some_pixels()))
    asked, failing = threading.Event(), threading.Event()

    def fail():
        asked.set()
        failing.wait()
        raise FetchError("status", "the host says 503", 503)

    shelf.faults = {0: fail}
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get, URL, shelf)
        asked.wait()
        waiting = pool.submit(cache._coming[URL].result)  # as whoever asks now
        failing.set()
        for one in (first, waiting):
            with pytest.raises(FetchError, match="503"):
                one.result()
    assert cache.get(URL, shelf).header.width_px == 300


def test_a_stopped_thread_leaves_the_header_to_the_next_one(cache):
    shelf = Shelf(B05=cog(some_pixels()))

    def stop():
        raise KeyboardInterrupt

    shelf.faults = {0: stop}
    with pytest.raises(KeyboardInterrupt):
        cache.get(URL, shelf)
    assert cache.get(URL, shelf).header.width_px == 300


def test_the_headers_that_were_used_last_are_kept_within_the_limit():
    data = cog(some_pixels())
    shelf = Shelf(**dict.fromkeys("abcd", data))
    one = parse_header(data, len(data)).size_bytes
    cache = HeaderCache(limit_bytes=3 * one + one // 2)
    urls = [f"https://h/a/{name}.tif" for name in "abcd"]
    for url in (*urls[:3], urls[0], urls[3]):  # b is the one that lay longest
        cache.get(url, shelf)
    assert [cache.find(url) is not None for url in urls] == [True, False, True, True]
    tiny = HeaderCache(limit_bytes=10)
    assert tiny.get(URL.replace("B05", "a"), shelf).header.width_px == 300
    assert tiny.find(urls[0]) is None


# Faults


@pytest.mark.parametrize("number", [1, 2, 4])
@pytest.mark.parametrize("checks", [True, False])
def test_a_file_that_changes_between_two_requests_is_read_again_and_never_mixed(cache, number, checks):
    old, new = some_pixels((64, 3000), 1), some_pixels((64, 3000), 2)
    shelf = Shelf(B05=cog(old))
    shelf.checks = checks  # the fetcher notices, or the reader
    shelf.faults = {number: lambda: shelf.put(cog(new), "v2")}
    got, _ = read_window(URL, Window(0, 10, 64, 90), shelf, headers=cache)
    np.testing.assert_array_equal(got, new[:, 10:100])
    assert len(shelf.asked) == number + 1 + 5  # a header and four rows of tiles, after what was in vain
    assert cache.get(URL, shelf).version.tag == "v2"


def test_a_header_of_yesterday_is_dropped_when_the_file_is_another_one(cache):
    shelf = Shelf(B05=cog(some_pixels(seed=1)))
    read_window(URL, None, shelf, headers=cache)
    new = some_pixels((500, 200), seed=2)
    shelf.put(cog(new), "v2")
    np.testing.assert_array_equal(read_window(URL, Window(0, 0, 16, 200), shelf, headers=cache)[0], new[:16])


def test_a_host_without_versions_cannot_pass_a_changed_file_for_the_old_one(cache):
    # Equal sizes and no tag: the old places do not decode, or not to what was written.
    shelf = Shelf(B05=cog(some_pixels(seed=1)))
    shelf.tag = ""
    read_window(URL, None, shelf, headers=cache)
    new = some_pixels(seed=2)
    new[:100] //= 100
    data = cog(new)
    wanted = len(shelf.files[URL])
    shelf.put(data + bytes(wanted - len(data)), "")
    np.testing.assert_array_equal(read_window(URL, Window(0, 0, 400, 300), shelf, headers=cache)[0], new)


def test_a_file_that_never_stays_the_same_is_refused(cache):
    shelf = Shelf(B05=cog(some_pixels()))

    def change():
        shelf.tag += "+"

    shelf.faults = dict.fromkeys(range(50), change)
    with pytest.raises(FetchError, match=r"changed|another one") as error:
        read_window(URL, Window(0, 0, 50, 50), shelf, headers=cache)
    assert error.value.kind == "changed"
    assert len(shelf.asked) == 4  # header and first range, twice
    assert cache.find(URL) is None


@pytest.mark.parametrize("status", [412, 416])
def test_answers_that_mean_another_file_are_taken_as_a_change(cache, status):
    pixels = some_pixels()
    shelf = Shelf(B05=cog(pixels))

    def refuse():
        raise FetchError("status", f"the host says {status}", status)

    shelf.faults = {1: refuse}
    got, _ = read_window(URL, Window(0, 0, 400, 300), shelf, headers=cache)
    np.testing.assert_array_equal(got, pixels)


@pytest.mark.parametrize("kind", ["status", "reset", "short", "timeout", "refused"])
def test_what_the_fetcher_gave_up_is_not_tried_again_and_the_header_stays(cache, kind):
    shelf = Shelf(B05=cog(some_pixels()))

    def fail():
        raise FetchError(kind, "no luck", 503 if kind == "status" else None)

    shelf.faults = {1: fail}
    with pytest.raises(FetchError, match="no luck"):
        read_window(URL, Window(0, 0, 50, 50), shelf, headers=cache)
    assert len(shelf.asked) == 2
    assert cache.find(URL) is not None


def page(number):
    body = b"<html><body>Too busy. Come again.</body></html>"
    return lambda: Piece(body, Version(len(body), "page")) if number == 0 else Piece(body, Version(len(body), "v1"))


def test_a_page_of_html_in_place_of_a_file_is_asked_for_twice_then_refused(cache):
    pixels = some_pixels()
    shelf = Shelf(B05=cog(pixels))
    shelf.faults = {0: page(0)}
    np.testing.assert_array_equal(read_window(URL, Window(0, 0, 400, 300), shelf, headers=cache)[0], pixels)
    cache.clear()
    shelf.asked.clear()
    shelf.faults = dict.fromkeys(range(9), page(0))
    with pytest.raises(NotACog, match="HTML"):
        read_window(URL, Window(0, 0, 400, 300), shelf, headers=cache)
    assert len(shelf.asked) == 2


def test_damaged_tiles_are_asked_for_twice_then_refused(cache):
    pixels = some_pixels()
    good = cog(pixels)
    bad = good[:-3000] + bytes(1000) + good[-2000:]
    shelf = Shelf(B05=bad)
    with pytest.raises(Damaged):
        read_window(URL, Window(0, 0, 400, 300), shelf, headers=cache)
    assert cache.find(URL) is None
    shelf = Shelf(B05=bad)
    shelf.faults = {2: lambda: shelf.put(good, "v1")}  # damaged on the way only
    np.testing.assert_array_equal(read_window(URL, Window(0, 0, 400, 300), shelf, headers=cache)[0], pixels)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("share", [0, 0.5, 1.5])
def test_a_piece_of_another_length_is_never_taken(cache, number, share):
    data = cog(some_pixels())
    shelf = Shelf(B05=data)

    def cut():
        start, stop = shelf.asked[-1]
        return Piece((data[start:stop] * 2)[: int(share * (stop - start))], Version(len(data), "v1"))

    shelf.faults = {number: cut}
    with pytest.raises(FetchError, match="bytes came of a range of") as error:
        read_window(URL, Window(0, 0, 400, 300), shelf, headers=cache)
    assert error.value.kind == "short"


def test_a_header_that_is_not_accepted_costs_no_pixels_and_is_not_kept(cache):
    shelf = Shelf(B05=cog(some_pixels()))

    def accept(header):
        raise LookupError(f"{header.width_px} px")

    with pytest.raises(LookupError, match="300 px"):
        read_window(URL, Window(0, 0, 400, 300), shelf, accept, headers=cache)
    assert len(shelf.asked) == 1
    assert cache.find(URL) is None


def test_a_changed_file_is_checked_anew(cache):
    shelf = Shelf(B05=cog(some_pixels()))
    shelf.faults = {1: lambda: shelf.put(cog(some_pixels((400, 320))), "v2")}

    def accept(header):
        if header.width_px != 300:
            raise LookupError(f"{header.width_px} px")

    with pytest.raises(LookupError, match="320 px"):
        read_window(URL, Window(0, 0, 400, 300), shelf, accept, headers=cache)


@pytest.mark.slow
@settings(FEW, max_examples=150)
@given(st.dictionaries(st.integers(0, 12), st.integers(0, 7), max_size=6), st.integers(0, 2**32))
def test_whatever_the_answers_pixels_are_right_or_there_is_an_error(faults, seed):
    rng = np.random.default_rng(seed)
    pixels = {"v1": some_pixels((40, 2500), 1), "v2": some_pixels((40, 2500), 2)}
    files = {tag: cog(data) for tag, data in pixels.items()}
    shelf, cache = Shelf(B05=files["v1"]), HeaderCache()

    def fault(kind):
        start, stop = shelf.asked[-1]
        data = shelf.files[URL]
        whole = data[start:stop]
        now = Version(len(data), shelf.tag)
        if kind == 0:
            raise FetchError("reset", "the connection broke")
        if kind == 1:
            return page(1)()
        if kind == 2:
            return Piece(b"", now)
        if kind == 3:
            return Piece(whole[: len(whole) // 2], now)
        if kind == 4:
            return Piece(bytes(len(whole)), now)
        if kind == 5:
            at = int(rng.integers(len(whole)))
            return Piece(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :], now)
        if kind == 6:
            return Piece(data[: len(whole)], now)  # the wrong range
        tag = "v2" if shelf.tag == "v1" else "v1"
        return shelf.put(files[tag], tag)

    shelf.faults = {number: lambda kind=kind: fault(kind) for number, kind in faults.items()}
    wanted_grid = (20.0, 0.0, 399960.0, 0.0, -20.0, 4500000.0)

    def accept(header):
        if (header.height_px, header.width_px, header.dtype, header.predictor) != (40, 2500, "uint16", 2):
            raise LookupError("another file")
        if header.epsg != 32633 or header.transform != wanted_grid or header.nodata != 0:
            raise LookupError("another grid")

    for _ in range(3):
        try:
            got, _header = read_window(URL, Window(3, 5, 30, 70), shelf, accept, headers=cache)
        except (FetchError, NotACog, Damaged, LookupError):
            continue
        assert any(np.array_equal(got, data[3:33, 5:75]) for data in pixels.values())


def test_the_process_s_fetcher_can_be_replaced():
    shelf = Shelf(B05=cog(some_pixels()))
    try:
        remote.use_fetcher(shelf)
        assert remote.fetcher() is shelf
        read_window(URL, None, remote.fetcher())
        assert remote.HEADERS.find(URL) is not None
    finally:
        remote.use_fetcher(None)
    assert remote.HEADERS.find(URL) is None
