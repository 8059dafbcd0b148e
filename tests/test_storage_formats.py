"""Sparse formats of single arrays: bit for bit, counted, read independently, and refused."""

import math
import struct

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from nettrim_solver.exceptions import ProblemError, SettingsError
from nettrim_solver.storage import FORMATS, Packed, count_bytes, pack, unpack

FLOATS = {"f2": "<u2", "f4": "<u4", "f8": "<u8"}


@st.composite
def bit_patterns(draw):
    """Arrays of any bits (NaN with any payload, -0.0, subnormals), many of them zero."""
    dtype = draw(st.sampled_from(sorted(FLOATS)))
    shape = tuple(draw(st.lists(st.integers(0, 9), min_size=1, max_size=4)))
    density = draw(st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = math.prod(shape)
    bits = rng.integers(0, 2 ** (8 * int(dtype[1])), size, dtype=FLOATS[dtype], endpoint=False)
    special = np.array([-0.0, np.nan, np.inf], dtype).view(bits.dtype)
    bits = np.where(rng.random(size) < 0.2, rng.choice(special, size), bits)
    return (
        np.where(rng.random(size) < density, bits, 0).astype(bits.dtype).view(dtype).reshape(shape)
    )


def same_bits(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def read_slowly(packed):
    """What the documentation says, one number after the other in plain Python."""
    code = {2: "H", 4: "I", 8: "Q"}[packed.arrays["values"].dtype.itemsize]
    kept = [item for (item,) in struct.iter_unpack(f"<{code}", packed.arrays["values"].tobytes())]
    size, length = math.prod(packed.shape), math.prod(packed.shape[1:])
    found = [0] * size
    if packed.format == "dense":
        found = kept
    elif packed.format == "bitmask":
        mask = packed.arrays["mask"].tolist()
        waiting = iter(kept)
        for i in range(size):
            if mask[i // 8] >> (i % 8) & 1:
                found[i] = next(waiting)
    elif packed.format == "csr":
        indices, indptr = (packed.arrays[name].tolist() for name in ("indices", "indptr"))
        for row in range(packed.shape[0]):
            for place in range(indptr[row], indptr[row + 1]):
                found[row * length + indices[place]] = kept[place]
    else:
        stream = int.from_bytes(packed.arrays["gaps"].tobytes(), "little")
        position = -1
        for value in kept:
            position += (stream & (2**packed.gap_bits - 1)) + 1
            stream >>= packed.gap_bits
            found[position] = value
    return struct.pack(f"<{len(found)}{code}", *found)


@given(bit_patterns(), st.sampled_from(FORMATS), st.sampled_from([1, 3, 4, 5, 8, 16, None]))
def test_what_is_packed_comes_back_bit_for_bit_and_is_counted(array, name, gap_bits):
    packed = pack(array, name, gap_bits)
    assert same_bits(unpack(packed), array)
    assert read_slowly(packed) == array.tobytes()
    counted = count_bytes(array, gap_bits)[name]
    assert counted.total == packed.nbytes == sum(a.nbytes for a in packed.arrays.values())
    values = packed.arrays["values"]
    zeros = int(np.sum(values.view(FLOATS[array.dtype.str[1:]]) == 0))
    if name != "dense":
        assert counted.values == values.nbytes - zeros * array.itemsize
    if name == "relative":
        assert counted.fillers >= zeros * array.itemsize and (counted.fillers > 0) == (zeros > 0)
    else:
        assert counted.fillers == 0


@given(bit_patterns(), st.sampled_from([2, 5, None]))
def test_the_smallest_is_the_smallest(array, gap_bits):
    sizes = {name: pack(array, name, gap_bits).nbytes for name in FORMATS}
    assert pack(array, "smallest", gap_bits).nbytes == min(sizes.values())
    best = min(pack(array, "relative", width).nbytes for width in range(1, 17))
    assert pack(array, "relative", None).nbytes == best


@pytest.mark.parametrize("order", ["<", ">"])
def test_byte_order_and_memory_layout_do_not_matter(order):
    rng = np.random.default_rng(1)
    array = np.where(rng.random((7, 6, 5)) < 0.2, rng.standard_normal((7, 6, 5)), 0.0)
    array = array.astype(f"{order}f8").transpose(2, 0, 1)[:, ::-1]
    for name in FORMATS:
        assert same_bits(unpack(pack(array, name)), np.ascontiguousarray(array))


def test_csr_is_that_of_scipy_with_narrower_integers():
    rng = np.random.default_rng(2)
    for columns, index, nnz_type in ((256, "u1", "u2"), (257, "u2", "u2"), (65537, "u4", "u1")):
        density = 3e-4 if columns > 60000 else 0.1
        W = np.where(rng.random((11, columns)) < density, 1.5, 0.0)
        packed, expected = pack(W, "csr"), sp.csr_array(W)
        assert packed.arrays["indices"].dtype == index
        assert packed.arrays["indptr"].dtype == nnz_type
        np.testing.assert_array_equal(packed.arrays["indices"], expected.indices)
        np.testing.assert_array_equal(packed.arrays["indptr"], expected.indptr)
        np.testing.assert_array_equal(packed.arrays["values"], expected.data)


def test_the_example_of_the_paper():
    # Figure 2 of Han et al., 3 bits: kept numbers at 1, 4 and 15, a filler at 12.
    array = np.zeros(16, np.float32)
    array[[1, 4, 15]] = 3.4, 0.9, 1.7
    packed = pack(array, "relative", gap_bits=3)
    np.testing.assert_array_equal(packed.arrays["values"], np.float32([3.4, 0.9, 0.0, 1.7]))
    # One zero, then two, then seven and the filler, then two; three bits each, lowest first.
    assert int.from_bytes(packed.arrays["gaps"].tobytes(), "little") == 0o2721


@pytest.mark.parametrize(("gap", "fillers"), [(31, 0), (32, 1), (63, 1), (64, 2)])
def test_a_filler_stands_where_more_than_31_zeros_are_skipped(gap, fillers):
    array = np.zeros(gap + 1, np.float32)
    array[gap] = 1.0
    assert len(pack(array, "relative").arrays["values"]) == 1 + fillers


def test_five_bits_for_each_float32_cost_what_the_authors_answered():
    # One weight of nine is kept; without fillers 9x becomes 9 / (1 + 5/32) = 7.8x.
    array = np.zeros(9 * 64, np.float32)
    array[::9] = 1.0
    size = count_bytes(array)["relative"]
    assert size.fillers == 0 and round(size.indices / size.values, 3) == 0.156
    assert round(array.nbytes / size.total, 1) == 7.8


# Refusal ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("array", [1.0, [1, 2], [1j], ["a"], [None], np.zeros(2, np.longdouble)])
def test_other_arrays_are_refused(array):
    with pytest.raises(ProblemError, match="array must hold float16, float32 or float64"):
        pack(array)
    with pytest.raises(ProblemError, match="array must hold"):
        count_bytes(array)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "coo"}, "format must be one of .* but was 'coo'"),
        ({"format": 5}, "format must be one of .* but was 5"),
        ({"gap_bits": 0}, "gap_bits must be an integer >= 1, but was 0"),
        ({"gap_bits": 17}, "gap_bits must be at most 16, but was 17"),
        ({"gap_bits": True}, "gap_bits must be an integer >= 1, but was True"),
        ({"gap_bits": 4.5}, "gap_bits must be an integer >= 1, but was 4.5"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(SettingsError, match=message):
        pack(np.ones(3), **settings)


ONES = np.ones(2, np.float32)
U1 = np.array([0, 1], np.uint8)
BROKEN = {
    "unknown": (Packed("coo", (4,), {"values": ONES}), "format must be one of"),
    "no format": (Packed(None, (4,), {"values": ONES}), "format must be one of"),
    "no values": (Packed("dense", (4,), {}), "must have values, but has none"),
    "integers": (Packed("dense", (2,), {"values": U1}), "values must be float16, float32"),
    "two axes": (Packed("dense", (1, 2), {"values": ONES[None]}), "values must have one axis"),
    "dense size": (Packed("dense", (3,), {"values": ONES}), "no dense form of an array of shape"),
    "no mask": (Packed("bitmask", (4,), {"values": ONES}), "must have mask"),
    "short mask": (Packed("bitmask", (9,), {"values": ONES, "mask": U1[1:]}), "no bitmask form"),
    "mask beyond": (
        Packed("bitmask", (2,), {"values": ONES, "mask": np.array([5], np.uint8)}), "no bitmask"
    ),
    "mask count": (Packed("bitmask", (9,), {"values": ONES, "mask": U1}), "no bitmask form"),
    "wide mask": (
        Packed("bitmask", (9,), {"values": ONES, "mask": U1.astype("u2")}), "axis of uint8"
    ),
    "signed": (
        Packed("csr", (1, 3), {"values": ONES, "indices": U1.astype("i1"), "indptr": U1}),
        "indices must be unsigned integers, but are int8",
    ),
    "column beyond": (
        Packed("csr", (1, 1), {"values": ONES, "indices": U1, "indptr": 2 * U1}), "no csr form"
    ),
    "indptr length": (
        Packed("csr", (2, 3), {"values": ONES, "indices": U1, "indptr": 2 * U1}), "no csr form"
    ),
    "indptr end": (
        Packed("csr", (1, 3), {"values": ONES, "indices": U1, "indptr": U1}), "no csr form"
    ),
    "indptr falls": (
        Packed("csr", (3, 3), {"values": ONES, "indices": U1,
                               "indptr": np.array([0, 2, 1, 2], "u1")}), "no csr form"
    ),
    "twice": (
        Packed("csr", (1, 3), {"values": ONES, "indices": 0 * U1, "indptr": 2 * U1}), "no csr form"
    ),
    "csr count": (
        Packed("csr", (1, 3), {"values": ONES[1:], "indices": U1, "indptr": 2 * U1}), "no csr form"
    ),
    "no width": (Packed("relative", (9,), {"values": ONES, "gaps": U1}), "gap_bits must be"),
    "width": (Packed("relative", (9,), {"values": ONES, "gaps": U1}, 99), "but was 99"),
    "gaps count": (Packed("relative", (9,), {"values": ONES, "gaps": U1}, 2), "no relative form"),
    "gaps beyond": (Packed("relative", (2,), {"values": ONES, "gaps": U1}, 5), "no relative form"),
    "gaps tail": (
        Packed("relative", (99,), {"values": ONES, "gaps": 128 * U1}, 5), "no relative form"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("packed", "message"), BROKEN.values(), ids=BROKEN)
def test_arrays_that_contradict_each_other_are_refused(packed, message):
    with pytest.raises(ProblemError, match=message):
        unpack(packed)


def test_results_do_not_alias_what_was_given():
    array = np.array([1.0, 0.0, 2.0])
    for name in FORMATS:
        packed = pack(array, name)
        again = unpack(packed)
        again[:] = 9
        assert not any(np.shares_memory(part, array) for part in packed.arrays.values())
        np.testing.assert_array_equal(unpack(packed), array)
