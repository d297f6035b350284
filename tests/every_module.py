"""Imports the whole package, and with it what it imports: for programs that are forked."""

import gc
import importlib
import os
import pkgutil

import lmm_classifier

os.environ["HF_HUB_OFFLINE"] = "1"  # the library reads it while it is imported
for module in pkgutil.walk_packages(lmm_classifier.__path__, "lmm_classifier."):
    if not module.name.endswith(("__main__", ".unpickle")) and ".train" not in module.name:
        importlib.import_module(module.name)
gc.freeze()  # a fork need not look through all that, and shares it
