"""YAML configurations: one folder per system, one file per stage; `base.yaml` is under all of them."""

if __name__ != "lit_rft.configs":
    raise ImportError(
        f"expected to be imported as lit_rft.configs, got {__name__}: its parent folder is on sys.path; "
        "write `import lit_rft.configs`"
    )
