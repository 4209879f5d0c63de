"""llama.cpp's own quantiser: `quantize_gguf.py SOURCE TYPE TARGET`, under the peers' Python.

Quantised sources are first brought to float32, so the weights are those that mull loads.
"""

from __future__ import annotations

import ctypes
import os
import sys

import llama_cpp as lc


def main() -> None:
    source, kind, target = sys.argv[1:]
    name = "LLAMA_FTYPE_ALL_F32" if kind == "f32" else f"LLAMA_FTYPE_MOSTLY_{kind.upper()}"
    params = lc.llama_model_quantize_default_params()
    params.ftype = getattr(lc, name)
    params.allow_requantize = True
    params.nthread = os.cpu_count() or 1
    partial = f"{target}.partial"
    status = lc.llama_model_quantize(source.encode(), partial.encode(), ctypes.byref(params))
    if status:
        sys.exit(f"llama.cpp could not write {kind} from {source}")
    os.replace(partial, target)


if __name__ == "__main__":
    main()
