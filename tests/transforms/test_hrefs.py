import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import BadInput
from transforms.catalogs.hrefs import resolve, stored, unsigned


@pytest.mark.parametrize(
    ("href", "bare"),
    [
        ("https://h/a.tif?sv=2021&se=2024&sr=c&sig=abc%3D", "https://h/a.tif"),
        ("https://h/a.tif?X-Amz-Algorithm=A&X-Amz-Signature=ab", "https://h/a.tif"),
        ("https://h/a.tif?Expires=1&Signature=ab&Key-Pair-Id=K", "https://h/a.tif"),
        ("https://h/a.tif?token=ab#here", "https://h/a.tif"),
        ("https://h/a.tif?version=3&band=1", "https://h/a.tif?version=3&band=1"),
        ("a.tif?sig=1", "a.tif?sig=1"),
    ],
)
def test_signatures_are_not_stored_and_other_queries_are(href, bare):
    assert unsigned(href) == bare


@pytest.mark.parametrize(
    ("href", "root", "location", "kept"),
    [
        ("./a.tif", "/cat", "/cat/items/x/x.json", "items/x/a.tif"),
        ("../../a.tif", "/cat", "/cat/items/x/x.json", "a.tif"),
        ("/cat/deep/a.tif", "/cat", "/cat/x.json", "deep/a.tif"),
        ("file:///cat/a%20b.tif", "/cat", "/cat/x.json", "a b.tif"),
        ("https://h/a.tif?sig=1", "/cat", "/cat/x.json", "https://h/a.tif"),
        ("s3://bucket/a.tif", "/cat", "/cat/x.json", "s3://bucket/a.tif"),
        ("./a.tif", "http://h/v1", "http://h/v1/collections/c/items/x", "collections/c/items/a.tif"),
        ("http://h/v1/files/a.tif", "http://h/v1", "http://h/v1/collections/c/items/x", "files/a.tif"),
        ("http://h/files/a.tif", "http://h/v1", "http://h/v1/collections/c/items/x", "http://h/files/a.tif"),
    ],
)
def test_hrefs_are_kept_relative_to_the_catalogue_and_resolve_to_what_they_meant(href, root, location, kept):
    assert stored(href, location, root, "x") == kept
    if href.startswith("http"):
        assert resolve(root, kept) == unsigned(href)


@pytest.mark.parametrize(
    ("href", "root", "location"),
    [
        ("../../etc/passwd", "/cat", "/cat/x.json"),
        ("./../../cat2/a.tif", "/cat", "/cat/i/x.json"),
        ("/etc/passwd", "/cat", "/cat/x.json"),
        ("/category/a.tif", "/cat", "/cat/x.json"),
        ("//host/a.tif", "/cat", "/cat/x.json"),
        ("file:///etc/passwd", "/cat", "/cat/x.json"),
        ("file:///etc/passwd", "http://h/v1", "http://h/v1/items/x"),
        ("/vsicurl/http://h/a.tif", "/cat", "/cat/x.json"),
        ("ftp://h/a.tif", "/cat", "/cat/x.json"),
        ("https://user:word@h/a.tif", "/cat", "/cat/x.json"),
        ("a\n.tif", "/cat", "/cat/x.json"),
        ("../../../a.tif", "http://h/v1", "http://h/v1/collections/x"),
        ("%2e%2e/%2e%2e/secret", "http://h/v1", "http://h/v1/items/x"),
        (".", "/cat", "/cat/x.json"),
    ],
)
def test_hrefs_out_of_the_catalogue_are_refused_by_item_and_without_secrets(href, root, location):
    with pytest.raises(BadInput, match="item x: href") as e:
        stored(href, location, root, "x")
    assert "word" not in str(e.value)


@pytest.mark.parametrize("root", ["/cat", "https://h/cat"])
@pytest.mark.parametrize("href", ["../a.tif", "a/../../b.tif", "/etc/passwd", ""])
def test_resolving_never_leaves_the_root(root, href):
    if root.startswith("https") and href.startswith("/"):
        assert resolve(root, href).startswith("https://h/cat/")
        return
    with pytest.raises(BadInput, match="leads out of the catalogue"):
        resolve(root, href)


def test_a_link_in_the_catalogue_that_points_out_of_it_is_refused(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "secret.tif").touch()
    (tmp_path / "cat/real.tif").touch()
    (tmp_path / "cat/a.tif").symlink_to("../secret.tif")
    (tmp_path / "alias").symlink_to("cat")
    with pytest.raises(BadInput, match="leads out"):
        resolve(str(tmp_path / "cat"), "a.tif")
    assert resolve(str(tmp_path / "alias"), "real.tif") == str(tmp_path / "alias/real.tif")


@settings(deadline=None)
@given(st.text("ab./\\%2e", max_size=12))
def test_what_is_stored_always_resolves_below_the_root(href):
    try:
        kept_ = stored(href, "/cat/items/x.json", "/cat", "x")
    except BadInput:
        return
    path = os.path.normpath(resolve("/cat", kept_))
    assert path.startswith("/cat/") and path == os.path.normpath(f"/cat/items/{href}")
