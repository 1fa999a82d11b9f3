import google_crc32c
from hypothesis import given
from hypothesis import strategies as st

from transforms.checksums import combined

EMPTY = "00000000"


def of(data):
    return f"{google_crc32c.value(data):08x}"


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_two_checksums_become_that_of_both_strings(a, b):
    assert combined(of(a), of(b), len(b)) == of(a + b)


@given(st.lists(st.binary(max_size=50), max_size=8))
def test_any_number_of_parts_in_their_order(parts):
    crc = EMPTY
    for part in parts:
        crc = combined(crc, of(part), len(part))
    assert crc == of(b"".join(parts))


@given(st.integers(0, 1 << 24), st.binary(min_size=1, max_size=64))
def test_a_long_second_part(zeros, a):
    assert combined(of(a), of(bytes(zeros)), zeros) == of(a + bytes(zeros))


def test_known_vectors():
    # RFC 3720, appendix B.4: 32 bytes of zeros, of ones, ascending; and the check value of the catalogue of CRCs.
    assert of(bytes(32)) == "8a9136aa"
    assert combined(of(b"1234"), of(b"56789"), 5) == "e3069283"
    assert combined(of(bytes(16)), of(bytes(16)), 16) == "8a9136aa"


def test_a_part_longer_than_four_gigabytes():
    # 2**32 + 5 zero bytes behind a letter, from the checksums of shorter runs of zeros.
    crc, length = of(bytes(1 << 20)), 1 << 20
    while length < 1 << 32:
        crc, length = combined(crc, crc, length), 2 * length
    crc, length = combined(crc, of(bytes(5)), 5), length + 5
    step = of(b"a")
    for _ in range(1 << 12):
        step = combined(step, of(bytes(1 << 20)), 1 << 20)
    assert combined(of(b"a"), crc, length) == combined(step, of(bytes(5)), 5)
