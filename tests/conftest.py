"""Shared fixtures; shapes in type annotations are checked while the tests run."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from jaxtyping import install_import_hook

install_import_hook(["circuit_trace"], "beartype.beartype")
