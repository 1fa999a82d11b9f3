"""An output folder belongs to one product: who may begin in it, and who is refused."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from model.errors import BadInput
from pipeline.planning import check_product
from transforms.disk_store import LocalStore

PRODUCT = {"model": "m", "profile": "p"}


@pytest.fixture
def store(tmp_path):
    return LocalStore(str(tmp_path))


@pytest.mark.parametrize("laid", [[], ["sum.onnx"]], ids=["an empty folder", "a model"])
def test_inputs_of_a_run_that_begins_in_this_moment_are_nobody_else_s_files(store, tmp_path, laid):
    # Or of one that died over its first object.
    (tmp_path / "_inputs").mkdir()
    for name in laid:
        (tmp_path / "_inputs" / name).write_bytes(b"1")
    check_product(store, PRODUCT)
    check_product(store, PRODUCT)
    assert sorted(store.names("_inputs")) == sorted([*(f"_inputs/{n}" for n in laid), "_inputs/product.json"])


@pytest.mark.parametrize("foreign", ["photo.jpg", "photos/1.jpg", "_runs/1/run.json"])
@pytest.mark.parametrize("begun", [False, True], ids=["alone", "beside _inputs"])
def test_a_folder_that_holds_anything_else_is_refused_and_left_as_it_was(store, tmp_path, foreign, begun):
    path = tmp_path / foreign
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"1")
    if begun:
        (tmp_path / "_inputs").mkdir()
    with pytest.raises(BadInput, match=rf"not of tessera-beam \({foreign.partition('/')[0]}\): choose another --out"):
        check_product(store, PRODUCT)
    assert store.stat("_inputs/product.json") is None
    assert path.read_bytes() == b"1"


def test_of_runs_that_start_at_once_those_of_one_product_go_on(store):
    ready = threading.Barrier(6)

    def start(n):
        ready.wait()
        try:
            check_product(store, PRODUCT | {"model": f"m{n % 2}"})
        except BadInput as e:
            assert "holds another product (model: there" in str(e)
            return "refused"
        return n % 2

    with ThreadPoolExecutor(6) as pool:
        ends = list(pool.map(start, range(6)))
    assert ends.count("refused") == 3
    assert ends.count(0) + ends.count(1) == 3 and 3 in (ends.count(0), ends.count(1))
