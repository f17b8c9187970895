"""Compiles `mlimg/hashing/both.c` into a wheel, or beside its source where the checkout itself is installed.

A wheel with it is one for Linux on x86-64, of any C library and any Python; without a compiler there, or elsewhere, it
is one for every machine, and hashes with hashlib.
"""

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = "mlimg/hashing/both.c"
LIBRARY = "mlimg/hashing/both.so"
# It calls no library, so that it loads beside any. With -O2 GCC orders the rounds so that two take a third longer.
FLAGS = ["-O1", "-std=c11", "-shared", "-fPIC", "-ffreestanding", "-nostdlib", "-fno-stack-protector"]
TAG = "py3-none-manylinux_2_17_x86_64.musllinux_1_1_x86_64"


class Compiled(BuildHookInterface):
    """Hatchling's hook."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say what the wheel is for."""
        if sys.platform != "linux" or platform.machine() != "x86_64" or sys.maxsize < 2**32:
            return
        root = Path(self.root)
        command = [*shlex.split(os.environ.get("CC", "cc")), *FLAGS, "-o", str(root / LIBRARY), str(root / SOURCE)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            self.app.display_warning(f"{SOURCE} is not compiled: {getattr(error, 'stderr', '') or error}")
            (root / LIBRARY).unlink(missing_ok=True)
            return
        build_data["artifacts"].append(f"/{LIBRARY}")
        build_data["pure_python"] = False
        build_data["tag"] = TAG
