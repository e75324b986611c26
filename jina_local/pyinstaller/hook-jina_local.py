"""What PyInstaller cannot see: modules that are imported by name, data, versions, and the engines' libraries.

A frozen app has the engines and extras that are installed where it is built; `--exclude-module` leaves one out. What
serves clusters, databases and the making of models stays out, unless the app itself imports it.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path

from PyInstaller.depend.imphookapi import PostGraphAPI
from PyInstaller.utils.hooks import collect_data_files, collect_dynamic_libs, collect_submodules, copy_metadata

from jina_local.text.definitions import GRAMMARS

hiddenimports = collect_submodules("jina_local", lambda name: not name.startswith("jina_local.pyinstaller"))
datas = collect_data_files("jina_local", excludes=["pyinstaller"])
excludedimports = ["convert", "gguf", "lancedb", "milvus_lite", "pyarrow", "pymilvus", "ray", "torch", "transformers"]

# Module -> distribution, of the packages whose versions `doctor` looks up.
_VERSIONED = {name: name for name in ("numpy", "tokenizers", "huggingface_hub", "tqdm", "mlx", "onnxruntime")}
_VERSIONED["llama_cpp"] = "llama-cpp-python"
# A library as it is opened by name. The wheel has copies with versions in their names; PyInstaller adds those that
# other libraries ask for. mtmd is for pictures and sound.
_OPENED_BY_NAME = re.compile(r"lib(?!mtmd)[^.]+\.(so|dylib)")


def hook(api: PostGraphAPI) -> None:
    """Collect what belongs to packages that the app does not exclude."""
    if "tree_sitter" not in api.analysis.excludes:
        api.add_imports(*(name for name in sorted(GRAMMARS) if find_spec(name)))
    for module, distribution in _VERSIONED.items():
        if module in api.analysis.excludes:
            continue
        try:
            api.add_datas(copy_metadata(distribution))
        except PackageNotFoundError:
            continue
        if module == "llama_cpp":
            libraries = collect_dynamic_libs(module)
            api.add_binaries([one for one in libraries if _OPENED_BY_NAME.fullmatch(Path(one[0]).name)])
        elif module == "mlx":
            api.add_imports("mlx._reprlib_fix", "mlx.__array_api_info")  # by its extension
            api.add_binaries(collect_dynamic_libs(module))
            api.add_datas(collect_data_files(module, includes=["**/*.metallib"]))
