"""Laws of vectors: packing is sqlite-vec's float32 layout and reversible, normalising gives unit length or an error."""

import pickle
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasette_vec_gemini.driver import sqlite3
from datasette_vec_gemini.errors import InvalidVector
from datasette_vec_gemini.vectors import (
    as_blob,
    checked,
    first_refused,
    int8_scale,
    normalise,
    pack,
    packing,
    parameters,
    quantise_int8,
    unpack,
)

FLOATS = st.floats(width=32)
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def unit_vectors(count, *, dimensions=384, seed=0):
    return normalise(np.random.default_rng(seed).normal(size=(count, dimensions)), dimensions=dimensions)


@given(st.lists(FLOATS, max_size=64))
def test_unpack_inverts_pack(values):
    vector = np.array(values, dtype=np.float32)
    unpacked = unpack(pack(vector))
    assert unpacked.dtype == np.float32
    np.testing.assert_array_equal(unpacked, vector)


@given(st.lists(FINITE, max_size=64))
def test_the_packed_form_is_four_little_endian_bytes_a_dimension(values):
    assert pack(values) == struct.pack(f"<{len(values)}f", *values)


def test_the_packed_form_does_not_depend_on_the_arrays_layout():
    expected = struct.pack("<2f", 1.0, -2.5)
    assert pack(np.array([1.0, -2.5], dtype=">f4")) == expected
    assert pack(np.array([1.0, -2.5], dtype=np.float64)) == expected
    assert pack(np.array([1.0, 9.0, -2.5, 9.0], dtype=np.float32)[::2]) == expected


@pytest.mark.parametrize("length", [1, 2, 3, 5, 1535])
def test_a_blob_that_holds_no_whole_number_of_floats_is_refused(length):
    with pytest.raises(InvalidVector, match=rf"^a packed vector has 4 bytes a dimension; this BLOB has {length} bytes"):
        unpack(bytes(length))


@given(st.lists(FINITE, min_size=3, max_size=3).filter(any))
def test_a_normalised_vector_has_unit_length_and_the_same_direction(values):
    unit = normalise(values, dimensions=3)
    assert (unit.dtype, unit.shape) == (np.float32, (3,))
    assert np.linalg.norm(unit.astype(np.float64)) == pytest.approx(1.0, abs=1e-6)
    exact = np.array(values) / np.linalg.norm(np.array(values) / np.abs(values).max()) / np.abs(values).max()
    np.testing.assert_allclose(unit, exact, atol=1e-6)


@given(st.lists(st.lists(FINITE, min_size=3, max_size=3).filter(any), min_size=1, max_size=5))
def test_vectors_are_normalised_together_as_each_is_alone(rows):
    alone = [normalise(row, dimensions=3) for row in rows]
    np.testing.assert_array_equal(normalise(rows, dimensions=3), np.array(alone))


def test_normalising_leaves_the_callers_array_alone():
    given_array = np.array([3.0, 4.0], dtype=np.float32)
    np.testing.assert_allclose(normalise(given_array, dimensions=2), [0.6, 0.8], rtol=1e-6)
    assert given_array.tolist() == [3.0, 4.0]


def test_no_vectors_are_normalised_to_no_vectors():
    assert normalise(np.empty((0, 4)), dimensions=4).shape == (0, 4)


@pytest.mark.parametrize("shape", [(), (0,), (3,), (5,), (4, 3), (2, 5), (1, 1, 4)])
def test_another_shape_is_refused_and_named(shape):
    with pytest.raises(InvalidVector) as caught:
        normalise(np.ones(shape), dimensions=4)
    assert str(caught.value) == f"expected vectors of 4 dimensions, got an array of shape {shape}"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_in_any_row(value):
    with pytest.raises(InvalidVector, match=r"^a vector holds NaN or infinity$"):
        normalise([[1.0, 2.0], [value, 1.0]], dimensions=2)


def test_zero_is_refused_in_any_row():
    with pytest.raises(InvalidVector, match=r"^a vector is all zeros and has no direction$"):
        normalise([[1.0, 2.0], [0.0, -0.0]], dimensions=2)


@given(st.lists(FLOATS, min_size=1, max_size=64), st.sampled_from([list, tuple, np.array, np.float32, pack]))
def test_checked_gives_the_floats_back_or_refuses_them_whatever_holds_them(values, form):
    given_values = form(values)
    if not np.isfinite(values).all():
        with pytest.raises(InvalidVector, match="NaN or infinity"):
            checked(given_values, len(values))
        return
    vector = checked(given_values, len(values))
    assert vector.dtype == np.float32
    np.testing.assert_array_equal(vector, np.array(values, dtype=np.float32))
    if any(values):
        checked(given_values, len(values), nonzero=True)
    else:
        with pytest.raises(InvalidVector, match="all zeros"):
            checked(given_values, len(values), nonzero=True)


@pytest.mark.parametrize("value", [3e38, 1e-45, -1e30, 1e-30])
def test_checked_takes_numbers_whose_squares_are_beyond_float32(value):
    vector = np.full(8, value, dtype=np.float32)
    assert checked(vector, 8, nonzero=True) is vector


def test_checked_looks_behind_a_mask():
    masked = np.ma.array([1.0, np.nan], mask=[False, True], dtype=np.float32)
    with pytest.raises(InvalidVector, match="NaN"):
        checked(masked, 2)
    assert type(checked(np.ma.array([1.0, 2.0], mask=[False, True], dtype=np.float32), 2)) is np.ndarray


@pytest.mark.parametrize("form", [bytes, bytearray, memoryview, lambda packed: memoryview(packed[::-1])[::-1]])
def test_checked_reads_packed_bytes_wherever_they_lie_and_keeps_its_own(form):
    held = form(pack([1.0, 2.0]))
    vector = checked(held, 2)
    assert vector.tolist() == [1.0, 2.0]
    assert isinstance(vector.base, bytes)  # nobody can change it
    with pytest.raises(InvalidVector, match="not 6"):
        checked(held[:6], 2)


def test_checked_warns_of_nothing_and_minds_no_error_state():
    with np.errstate(all="raise"):
        assert checked(np.full(2, 1e-50), 2).tolist() == [0.0, 0.0]
        with pytest.raises(InvalidVector, match="NaN"):
            checked(np.array([0x7FF4000000000001, 0], dtype=np.uint64).view(np.float64), 2)
        assert checked(np.full(2, 1e30, dtype=np.float32), 2)[0] > 0


@given(st.lists(FLOATS, min_size=1, max_size=64))
def test_a_blob_is_the_packed_form_however_the_vector_lies_in_memory(values):
    vector = np.array(values, dtype=np.float32)
    unpacked = np.frombuffer(pack(vector), dtype=np.float32)
    for form in (vector, vector[::-1], vector[::2], unpacked, unpacked[::-1], unpacked[1:], vector.astype(">f4")):
        blob = as_blob(form)
        assert blob == pack(form)
        assert type(blob) is bytes


@given(st.lists(FINITE, min_size=1, max_size=64), st.booleans())
def test_a_parameter_is_what_sqlite_reads_as_the_packed_form(values, nonzero):
    vector = np.array(values, dtype=np.float32)
    twice = np.repeat(vector, 2)
    unpacked = np.frombuffer(pack(vector), dtype=np.float32)
    made = parameters(len(values), nonzero=nonzero)
    conn = sqlite3.connect(":memory:")
    for form in (values, vector, twice[::2], unpacked, vector.astype(">f4"), vector.astype(float), pack(vector)):
        if nonzero and not any(values):
            with pytest.raises(InvalidVector, match="all zeros"):
                made(form)
        else:
            assert conn.execute("select ?", [made(form)]).fetchone() == (pack(vector),)
    conn.close()


def test_parameters_copy_no_array_and_refuse_what_is_no_vector():
    vector = np.ones(3, dtype=np.float32)
    made = parameters(3)
    assert np.shares_memory(made(vector), vector)
    assert made(None) is None
    for wrong in (vector[:2], vector.reshape(1, 3), np.array([1, np.nan, 1], dtype=np.float32), "abc"):
        with pytest.raises(InvalidVector):
            made(wrong)


def test_parameters_are_looked_at_as_bytes_are():
    made = parameters(3)
    one, same, other = (made(np.array(values, dtype=np.float32)) for values in ([1, 2, 3], [1, 2, 3], [1, 2, 4]))
    assert one == same == pack([1, 2, 3])
    assert one != other
    assert len({one, same, other, pack([1, 2, 3])}) == 2
    assert (repr(one) == repr(same), repr(one) == repr(other), str(one) == repr(one)) == (True, False, True)
    assert (("select ?", one) == ("select ?", other), bool(one)) == (False, True)
    assert pickle.loads(pickle.dumps(one)) == one


@given(
    st.lists(
        st.none() | st.lists(FLOATS, min_size=3, max_size=3) | st.just([0.0] * 3) | st.just([3e30] * 3), max_size=9
    ),
    st.sampled_from([list, np.float32, np.array, pack]),
    st.booleans(),
    st.booleans(),
)
def test_vectors_that_are_packed_and_looked_at_together_are_what_each_is_alone(rows, form, nonzero, copy):
    given_rows = [row and form(row) for row in rows]
    packed = [*map(packing(3, copy=copy), given_rows)]
    refusals = []
    for place, row in enumerate(given_rows):
        try:
            assert packed[place] == (None if row is None else as_blob(checked(row, 3, nonzero=nonzero)))
        except InvalidVector as error:
            refusals.append((place, str(error)))
    refused = first_refused(packed, 3, nonzero=nonzero)
    assert (refused and (refused[0], str(refused[1]))) == (refusals[0] if refusals else None)


@pytest.mark.parametrize("copy", [True, False])
def test_what_is_packed_may_change_afterwards_if_it_is_copied_and_what_is_no_vector_is_refused(copy):
    vector = np.ones(3, dtype=np.float32)
    packed = packing(3, copy=copy)
    blob = packed(vector)
    vector[:] = 2
    assert blob == pack([1, 1, 1] if copy else [2, 2, 2])
    for wrong in (vector[:2], vector.reshape(1, 3), "abc", 5):
        with pytest.raises(InvalidVector):
            packed(wrong)


def test_checked_asks_whether_zeros_are_refused_for_zeros_only():
    asked = []
    assert checked([1.0, 0.0], 2, nonzero=lambda: asked.append(1) or True)[0] == 1.0
    assert asked == []
    assert not checked([0.0, 0.0], 2, nonzero=lambda: asked.append(1) or False).any()
    assert asked == [1]
    with pytest.raises(InvalidVector, match="all zeros"):
        checked([0.0, 0.0], 2, nonzero=lambda: True)


@pytest.mark.parametrize(
    "vectors",
    [
        pytest.param([1e200, 1.0], id="too great for float32"),
        pytest.param(["a", "b"], id="no numbers"),
        pytest.param([[1.0, 2.0], [3.0]], id="ragged"),
    ],
)
def test_what_cannot_be_float32_is_an_invalid_vector(vectors):
    with pytest.raises(InvalidVector):
        normalise(vectors, dimensions=2)


def test_int8_codes_are_rounded_and_clipped_symmetrically():
    vector = np.array([0.0, 0.004, 0.006, -0.006, 0.5, 1.0, -1.0], dtype=np.float32)
    assert quantise_int8(vector, scale=100.0) == struct.pack("7b", 0, 0, 1, -1, 50, 100, -100)
    assert quantise_int8(vector, scale=1e9) == struct.pack("7b", 0, 127, 127, -127, 127, 127, -127)


@given(st.lists(st.floats(-1, 1, width=32), max_size=16), st.floats(1, 1e6))
def test_an_int8_code_is_within_half_a_step_of_its_value_or_at_the_border(values, scale):
    vector = np.array(values, dtype=np.float32)
    codes = np.frombuffer(quantise_int8(vector, scale=scale), dtype=np.int8)
    wanted = np.clip(vector.astype(np.float64) * scale, -127, 127)
    assert len(codes) == len(values)
    assert np.abs(codes - wanted).max(initial=0) <= 0.5 + 1e-4


def test_the_int8_scale_spreads_nearly_all_values_over_the_range():
    assert int8_scale(np.array([[0.5, 0.5, -0.5, -0.5]], dtype=np.float32)) == 254.0
    vectors = unit_vectors(1_000)
    magnitudes = np.abs(vectors) * int8_scale(vectors)
    assert 0.0004 < (magnitudes > 127).mean() < 0.0006


def test_the_int8_scale_of_sparse_vectors_is_finite():
    sparse = np.eye(4_096, dtype=np.float32)[:10]
    assert np.isfinite(int8_scale(sparse))


def test_a_scale_of_its_own_keeps_recall_that_the_fixed_one_loses():
    vectors, queries = unit_vectors(5_000, seed=1), unit_vectors(100, seed=2)
    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]

    def recall_at_10(scale):
        def codes(rows):
            return np.array([np.frombuffer(quantise_int8(row, scale=scale), dtype=np.int8) for row in rows], dtype=int)

        stored = codes(vectors)
        distances = (stored**2).sum(axis=1) - 2 * codes(queries) @ stored.T
        found = np.argsort(distances, axis=1, kind="stable")[:, :10]
        return np.mean([len({*a} & {*b}) / 10 for a, b in zip(found, exact, strict=True)])

    own, fixed = recall_at_10(int8_scale(vectors)), recall_at_10(127.0)
    assert own > 0.95
    assert own - fixed > 0.02
