"""Start a process of the sandbox: `python -s -P -S -B start.py zygote|spawner|interpreter ARGUMENT`.

This file is not part of the package: it makes the package `sandbox` importable, for as long as the import takes.
"""

import importlib
import os
import sys

if __name__ == "__main__":
    _parent = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    sys.path.insert(0, _parent)
    _module = importlib.import_module(f"sandbox.{sys.argv[1]}")
    sys.path.remove(_parent)
    _module.main(sys.argv[2])
