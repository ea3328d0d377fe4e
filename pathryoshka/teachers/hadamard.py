"""Hadamard matrices of the widths that encoders have: square, entries +1 and -1, rows orthogonal.

Multiplied by one, a vector of unequal variances becomes one of equal variances (every entry has the same weight),
which is what PHI-S needs. Built exactly, from three rules: Sylvester's doubling; Paley's first construction, q + 1 for
a prime power q of the form 4k + 3; his second, 2 (q + 1) for one of the form 4k + 1. A width that none of them reaches
is refused: random signs made orthogonal by QR would equalise variances only roughly, and no encoder we know needs that.
"""

from __future__ import annotations

import numpy as np


def hadamard(n: int) -> np.ndarray:
    """Orthonormal fp64 [n, n] with entries +-1 / sqrt(n), the same at every call.

    Raises:
        ValueError: none of the rules reaches n; the sentence names the nearest widths that they do reach.
    """
    parts = split(n)
    if parts is None:
        below = next((m for m in range(n - 1, 0, -1) if split(m)), None)
        above = next(m for m in range(n + 1, 2 * max(n, 4)) if split(m))
        near = f"{below} and {above}" if below else str(above)
        raise ValueError(
            f"there is no Hadamard matrix for features of width {n} here (nearest widths: {near}); "
            "set the standardiser to per_channel or global"
        )
    doublings, core = parts
    signs = np.ones((1, 1), np.int8) if core == 1 else paley_one(core) if is_paley_one(core) else paley_two(core)
    for _ in range(doublings):
        signs = np.block([[signs, signs], [signs, -signs]])
    return signs / np.sqrt(n)


def split(n: int) -> tuple[int, int] | None:
    """(k, m) with n = 2**k * m, the largest k for which m is 1 or a Paley size; None if there is none."""
    doublings = max(n & -n, 1).bit_length() - 1 if n > 0 else -1
    for k in range(doublings, -1, -1):
        core = n >> k
        if core == 1 or is_paley_one(core) or is_paley_two(core):
            return k, core
    return None


def is_paley_one(size: int) -> bool:
    return size % 4 == 0 and prime_power(size - 1) is not None


def is_paley_two(size: int) -> bool:
    return size % 4 == 0 and size // 2 % 4 == 2 and prime_power(size // 2 - 1) is not None


def prime_power(q: int) -> tuple[int, int] | None:
    """(p, k) with q = p**k and p prime, else None."""
    if q < 2:
        return None
    p = next((d for d in range(2, int(q**0.5) + 1) if q % d == 0), q)
    k = 0
    while q % p == 0:
        q, k = q // p, k + 1
    return (p, k) if q == 1 else None


def paley_one(size: int) -> np.ndarray:
    """Border row +1, border column -1, core = Jacobsthal matrix + identity; int8 [size, size]."""
    out = np.ones((size, size), np.int8)
    out[1:, 0] = -1
    out[1:, 1:] = jacobsthal(size - 1) + np.eye(size - 1, dtype=np.int8)
    return out


def paley_two(size: int) -> np.ndarray:
    """A symmetric conference matrix with each entry made a 2 x 2 block; int8 [size, size]."""
    half = size // 2
    conference = np.ones((half, half), np.int8)
    conference[0, 0] = 0
    conference[1:, 1:] = jacobsthal(half - 1)
    zero = np.array([[1, -1], [-1, -1]], np.int8)
    one = np.array([[1, 1], [1, -1]], np.int8)
    return np.kron(conference, one) + np.kron(np.eye(half, dtype=np.int8), zero)


def jacobsthal(q: int) -> np.ndarray:
    """int8 [q, q]: +1 where i - j is a square of the field with q elements, -1 where it is none, 0 on the diagonal.

    Elements are numbers below q whose digits in base p are the coefficients of a polynomial.
    """
    power = prime_power(q)
    assert power is not None, q
    p, k = power
    place = p ** np.arange(k)
    digits = np.arange(q)[:, None] // place % p
    character = np.full(q, -1, np.int8)
    character[squares(digits, p) @ place] = 1
    character[0] = 0
    return character[(digits[:, None] - digits[None]) % p @ place]


def squares(digits: np.ndarray, p: int) -> np.ndarray:
    """digits [q, k] of every element's square, by multiplying polynomials modulo an irreducible one."""
    q, k = digits.shape
    product = np.zeros((q, 2 * k - 1), np.int64)
    for i in range(k):
        for j in range(k):
            product[:, i + j] += digits[:, i] * digits[:, j]
    if k > 1:
        modulus = irreducible(digits, p)
        for top in range(2 * k - 2, k - 1, -1):  # x**k = -(modulus without its leading term)
            product[:, top - k : top] -= product[:, top : top + 1] * modulus
    return product[:, :k] % p


def irreducible(digits: np.ndarray, p: int) -> np.ndarray:
    """The lower coefficients [k] of the first monic polynomial of degree k that no pair of lower ones makes."""
    _, k = digits.shape
    made = set()
    for degree in range(1, k // 2 + 1):
        factors = [[*low[:degree], 1] for low in digits[: p**degree]]
        others = [[*low[: k - degree], 1] for low in digits[: p ** (k - degree)]]
        made |= {tuple(np.convolve(a, b)[:k] % p) for a in factors for b in others}
    return next(low for low in digits if tuple(low) not in made)
