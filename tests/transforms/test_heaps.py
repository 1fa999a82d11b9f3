import gc
import subprocess
import sys
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.heaps import LASTING_BYTES, give_back_freed_memory, lasting

side = st.integers(0, 700)


@given(side, side, st.sampled_from(["uint8", "uint16", "int16", "float32"]))
def test_lasting_arrays_are_zeros_like_any_other(height, width, dtype):
    array = lasting((height, width), dtype)
    assert (array.shape, array.dtype) == ((height, width), np.dtype(dtype))
    assert array.flags.c_contiguous and array.flags.writeable
    assert not array.any()
    array[...] = 7
    assert (array == 7).all()


def test_lasting_arrays_do_not_share_memory():
    a, b = (lasting((1024, 1024), np.uint16) for _ in range(2))
    a[...] = 1
    assert not b.any()


def test_the_pages_of_a_lasting_array_live_as_long_as_its_last_view():
    array = lasting((1024, 1024), np.uint16)
    pages = weakref.ref(array.base if array.base.base is None else array.base.base)
    view = array[1:]
    del array
    view[...] = 3
    assert (view == 3).all()
    del view
    gc.collect()
    assert pages() is None


FREED = """
import sys
import numpy as np
from pathlib import Path
from transforms.heaps import give_back_freed_memory, lasting

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def usual(shape, dtype):
    return np.zeros(shape, dtype)

how, give_back = {"lasting": lasting, "usual": usual}[sys.argv[1]], sys.argv[2] == "give back"
raises_the_threshold = np.ones(20 << 20, np.uint8)  # of glibc: what is smaller lies in heaps from now on
del raises_the_threshold
kept, large = [], []
for _ in range(100):
    large.append(how((2 << 20,), np.uint8))
    large[-1][...] = 1
    kept.append(np.ones(1 << 10, np.uint8))
full = resident()
del large[::2]
if give_back and not give_back_freed_memory():
    raise SystemExit("unknown")
print((full - resident()) >> 20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident size is read from /proc")
@pytest.mark.parametrize(
    ("how", "when", "freed"),
    [("usual", "", False), ("usual", "give back", True), ("lasting", "", True)],
)
def test_freed_arrays_go_back_to_the_system(how, when, freed):
    """Half of 200 MB, between small arrays that stay."""
    command = [sys.executable, "-c", FREED, how, when]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unknown" in ran.stderr:
        assert not give_back_freed_memory()
        pytest.skip("this C library cannot be told")
    assert ran.returncode == 0, ran.stderr
    got = int(ran.stdout)
    assert got > 90 if freed else got < 50


def test_small_lasting_arrays_are_usual_ones():
    assert lasting((LASTING_BYTES - 1,), np.uint8).base is None
    assert lasting((LASTING_BYTES,), np.uint8).base is not None
