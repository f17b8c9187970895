"""SHA-256 of the same bytes into two digests, at the price of one.

`both.c` is compiled when mlimg is installed (`hatch_build.py`); it needs a processor that has instructions for SHA-256.
Where there is no such, `AVAILABLE` is false, and hashlib serves.
"""

import ctypes
from pathlib import Path
from typing import Final

_LIBRARY: Final = Path(__file__).with_name("both.so")
_INITIAL: Final = (  # FIPS 180-4, section 5.3.3
    0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19,
)  # fmt: skip


class _State(ctypes.Structure):
    """`digest` of `both.c`."""

    _fields_ = (("state", ctypes.c_uint32 * 8), ("size", ctypes.c_uint64), ("tail", ctypes.c_uint8 * 64))


def _load() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(_LIBRARY))
    except OSError:  # nobody compiled it, or it is of another kind of machine
        return None
    state = ctypes.POINTER(_State)
    library.update.argtypes = [state, ctypes.c_void_p, ctypes.c_size_t]
    library.update_both.argtypes = [state, state, ctypes.c_void_p, ctypes.c_size_t]
    library.finish.argtypes = [state, ctypes.c_void_p]
    library.update.restype = library.update_both.restype = library.finish.restype = None
    return library if library.supported() else None


_library: Final = _load()
AVAILABLE: Final = _library is not None


class Sha256:
    """A digest under way, as hashlib's are. Only where it is `AVAILABLE`; one thread at a time."""

    def __init__(self) -> None:
        self._state = _State((ctypes.c_uint32 * 8)(*_INITIAL))

    def update(self, data: bytes | memoryview) -> None:
        """Hash more bytes; a memoryview is of bytes that may be written to."""
        assert _library is not None  # noqa: S101 (see the class)
        _library.update(self._state, _address(data), len(data))

    def update_with(self, other: "Sha256", data: bytes | memoryview) -> None:
        """Hash more bytes into this one and `other`. Raises ValueError unless one has whole blocks more."""
        assert _library is not None  # noqa: S101 (see the class)
        if (self._state.size - other._state.size) % 64:
            raise ValueError("the two stand at different places of a block")
        _library.update_both(self._state, other._state, _address(data), len(data))

    def hexdigest(self) -> str:
        """The digest of all bytes so far, as 64 hex digits."""
        assert _library is not None  # noqa: S101 (see the class)
        result = ctypes.create_string_buffer(32)
        _library.finish(self._state, result)
        return result.raw.hex()


def _address(data: bytes | memoryview) -> "bytes | ctypes._CArgObject | None":
    """What ctypes passes as the address of `data`, which it keeps alive during the call."""
    if isinstance(data, bytes):
        return data
    return ctypes.byref(ctypes.c_char.from_buffer(data)) if len(data) else None
