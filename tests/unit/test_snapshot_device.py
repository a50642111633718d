"""The simulated GPU as Python sees it.

Must never need a GPU or more memory than a few pages.
"""

import pytest

from inferx._ext import SoftDevice


def test_memory_is_counted_in_units_of_two_mib() -> None:
    device = SoftDevice(80 * 1024)
    first = device.allocate(14_001)
    assert (device.used_mib, device.capacity_mib) == (14_002, 81_920)
    second = device.allocate(2)
    device.free(first)
    assert device.used_mib == 2
    device.free(second)
    assert device.used_mib == 0


def test_memory_that_does_not_fit_is_refused_and_nothing_is_taken() -> None:
    device = SoftDevice(8)
    device.allocate(6)
    with pytest.raises(MemoryError, match="out of device memory"):
        device.allocate(4)
    assert device.used_mib == 6


def test_a_second_free_and_nonsense_sizes_are_errors() -> None:
    device = SoftDevice(8)
    handle = device.allocate(2)
    device.free(handle)
    with pytest.raises(KeyError):
        device.free(handle)
    with pytest.raises(ValueError, match="length 0"):
        device.allocate(0)
    with pytest.raises(ValueError, match="capacity"):
        SoftDevice(1)
