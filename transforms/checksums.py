"""Checksums: the crc32c of joined bytes from those of the parts, so that no published byte is read again for it."""

import functools

# CRC-32C (Castagnoli), bits reversed: RFC 3720, appendix B.4.
_POLYNOMIAL = 0x82F63B78


def combined(first: str, second: str, second_bytes: int) -> str:
    """The crc32c of two byte strings one after another.

    The checksum of A followed by n zeros is a linear map of A's (a shift by 8 n bits modulo the polynomial), and
    B adds to it by exclusive or: so only A's checksum, B's, and B's length are needed.

    Args:
      first, second: crc32c as hex digits, most significant first.
      second_bytes: length of the second string, at least 0.

    Returns:
      Eight hex digits.
    """
    crc, n, power = int(first, 16), second_bytes, 3  # 2**3 bits are a byte
    while n:
        if n & 1:
            crc = _times(_shift(power), crc)
        n >>= 1
        power += 1
    return f"{crc ^ int(second, 16):08x}"


def _times(a: int, b: int) -> int:
    """Product of two polynomials modulo that of CRC-32C, both with the highest power in the lowest bit."""
    product, bit = 0, 1 << 31
    while bit:
        if a & bit:
            product ^= b
        b = b >> 1 ^ _POLYNOMIAL if b & 1 else b >> 1
        bit >>= 1
    return product


@functools.cache
def _shift(power: int) -> int:
    """x to the 2**power: what moves a checksum past that many bits."""
    x = 1 << 30  # the polynomial "x"
    for _ in range(power):
        x = _times(x, x)
    return x
