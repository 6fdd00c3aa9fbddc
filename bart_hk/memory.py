"""What this process frees stays with it, instead of going back to the system."""

import ctypes

# Of glibc's malloc.h, for mallopt.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Keeps freed memory for the whole process, from now on; where there is no glibc, nothing.

    On a CPU a program of XLA's asks for all it needs at every call, a gigabyte for an update of a
    small model, and frees it again. glibc gives pieces of that size back at once, and the system
    has to make every page anew for the next call: in a virtual machine that was half of the time
    of fine-tuning bart.mini. Now one heap keeps them, which may take more memory at the peak.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        for option, value in ((_M_ARENA_MAX, 1), (_M_TRIM_THRESHOLD, -1), (_M_MMAP_MAX, 0)):
            libc.mallopt(option, value)
