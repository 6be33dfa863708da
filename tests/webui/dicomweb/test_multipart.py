from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webui.dicomweb import multipart
from webui.dicomweb.multipart import MultipartError, MultipartLimitError, Outgoing, Part

BOUNDARY = "b0undary"
# Close to a boundary again and again.
TROUBLE = st.lists(
    st.sampled_from([b"\r\n", b"\r", b"\n", b"--", b"-", b"b0undar", b"b0undar\xff", b"\0", b"x"])
    | st.binary(max_size=8),
    max_size=12,
).map(b"".join)


class Trickle:
    """A stream that gives what it has in pieces of some size."""

    def __init__(self, data: bytes, piece: int) -> None:
        self._data = BytesIO(data)
        self._piece = piece

    def read(self, size: int, /) -> bytes:
        return self._data.read(min(size, self._piece))


@dataclass(frozen=True)
class Whole:
    headers: Mapping[str, str]
    content: bytes


def parts(
    data: bytes, *, piece: int = 7, largest: int = 1 << 20, most: int = 100
) -> Iterator[Part]:
    stream = Trickle(data, piece)
    return multipart.read(stream, BOUNDARY, largest_part_bytes=largest, most_parts=most)


def read(data: bytes, **options: int) -> list[Whole]:
    return [Whole(part.headers, b"".join(part.content)) for part in parts(data, **options)]


def written(*contents: bytes) -> bytes:
    parts: Iterable[Outgoing] = [Outgoing("application/dicom", [content]) for content in contents]
    return b"".join(multipart.write(parts, BOUNDARY))


@given(st.lists(TROUBLE, max_size=4), st.integers(1, 50))
def test_what_is_written_is_read_again(contents: list[bytes], piece: int):
    contents = [content.replace(b"--b0undary", b"") for content in contents]

    found = read(written(*contents), piece=piece)

    assert [part.content for part in found] == contents
    assert all(part.headers == {"content-type": "application/dicom"} for part in found)


@given(st.lists(TROUBLE, min_size=1, max_size=3), st.data())
def test_a_message_cut_short_is_refused(contents: list[bytes], data: st.DataObject):
    contents = [content.replace(b"--b0undary", b"") for content in contents]
    whole = written(*contents).removesuffix(b"--\r\n")
    cut = data.draw(st.integers(0, len(whole)))

    with pytest.raises(MultipartError, match="ends within"):
        read(whole[:cut])


@given(TROUBLE)
def test_no_bytes_lead_to_another_error(data: bytes):
    for message in (data, b"--b0undary\r\n" + data, b"--b0undary\r\nA: b\r\n\r\n" + data):
        try:
            read(message + b"\r\n--b0undary--")
        except MultipartError:
            continue


@pytest.mark.parametrize(
    "message",
    [
        b"--b0undary\r\nA: 1\r\n\r\nbody\r\n--b0undary--",
        b"preamble\r\n--b0undary \t\r\nA: 1\r\n\r\nbody\r\n--b0undary--\r\nepilogue",
        b"\r\n--b0undary\r\na:1\r\n\r\nbody\r\n--b0undary--",
    ],
)
def test_what_the_standard_allows_is_read(message: bytes):
    assert read(message) == [Whole({"a": "1"}, b"body")]


def test_a_part_without_header_fields():
    assert read(b"--b0undary\r\n\r\nbody\r\n--b0undary--") == [Whole({}, b"body")]


def test_a_part_without_content():
    assert read(b"--b0undary\r\nA: 1\r\n\r\n\r\n--b0undary--") == [Whole({"a": "1"}, b"")]


@given(st.lists(TROUBLE, min_size=1, max_size=3), st.integers(1, 50), st.integers(0, 3))
def test_what_is_left_unread_of_a_part_is_passed_over(
    contents: list[bytes], piece: int, pieces: int
):
    contents = [content.replace(b"--b0undary", b"") for content in contents]

    message = parts(written(*contents), piece=piece)
    begun = [b"".join(islice(part.content, pieces)) for part in message]

    assert len(begun) == len(contents)
    assert all(
        content.startswith(beginning) for content, beginning in zip(contents, begun, strict=True)
    )


def test_a_part_comes_in_pieces_before_it_is_whole():
    def sent() -> Iterator[bytes]:
        yield b"--b0undary\r\n\r\n"
        for _ in range(1000):
            yield bytes(multipart.CHUNK_BYTES)
        raise AssertionError("all of it was read ahead")

    chunks = sent()

    class Stream:
        def read(self, _size: int, /) -> bytes:
            return next(chunks)

    (part,) = islice(
        multipart.read(Stream(), BOUNDARY, largest_part_bytes=1 << 30, most_parts=1), 1
    )
    longest = max(map(len, islice(part.content, 100)))

    assert longest <= 2 * multipart.CHUNK_BYTES


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"no boundary at all",
        b"--b0undaryX\r\nA: 1\r\n\r\nbody\r\n--b0undary--",
        b"--b0undary\nA: 1\n\nbody\n--b0undary--",
        b"--b0undary\r\nno colon\r\n\r\nbody\r\n--b0undary--",
        b"--b0undary\r\n: 1\r\n\r\nbody\r\n--b0undary--",
    ],
)
def test_what_is_malformed_is_refused(message: bytes):
    with pytest.raises(MultipartError):
        read(message)


def test_limits_hold():
    assert len(read(written(b"x" * 100), largest=100)) == 1
    with pytest.raises(MultipartLimitError):
        read(written(b"x" * 101), largest=100)
    with pytest.raises(MultipartLimitError):
        read(b"--b0undary\r\nA: 1\r\n\r\n" + b"x" * 10_000, largest=100)
    with pytest.raises(MultipartLimitError):
        read(b"--b0undary\r\n" + b"A: 1\r\n" * 10_000)
    with pytest.raises(MultipartLimitError):
        read(b"x" * 100_000)
    assert len(read(written(b"1", b"2"), most=2)) == 2
    with pytest.raises(MultipartLimitError):
        read(written(b"1", b"2", b"3"), most=2)


@pytest.mark.parametrize("boundary", ["", "x" * 1000, "bö"])
def test_a_boundary_that_is_none_is_refused(boundary: str):
    with pytest.raises(MultipartError):
        list(multipart.read(BytesIO(b""), boundary, largest_part_bytes=1, most_parts=1))
