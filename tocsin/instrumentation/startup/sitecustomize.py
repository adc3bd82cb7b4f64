"""
What `tocsin run` puts first on a program's path: Python imports it before the program itself.

It starts tocsin, and then whatever `sitecustomize` the machine has besides.
"""

import gc
import importlib.machinery
import importlib.util
import sys
from pathlib import Path


def _start() -> None:
    # multiprocessing's helper for shared memory runs no code of the user's.
    if any("resource_tracker" in word for word in sys.orig_argv):
        return
    is_collecting = gc.isenabled()
    gc.disable()  # what is loaded here stays; to look it through takes 5 ms
    try:
        from tocsin.instrumentation.start import init  # noqa: PLC0415

        init()
    except Exception as problem:  # a program must start, whatever is wrong with tocsin
        sys.stderr.write(f"tocsin: not started: {problem}\n")
    finally:
        if is_collecting:
            gc.enable()


def _chain() -> None:
    here = Path(__file__).resolve().parent
    path = [entry for entry in sys.path if Path(entry).resolve() != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", path)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


_start()
_chain()
