"""YAML configurations: one folder per system, one file per stage; `base.yaml` is under all of them."""

if __name__ != "lit_rft.configs":
    raise ImportError(
        f"this package is lit_rft.configs, but it was imported as {__name__}: a folder that holds it is on sys.path; "
        "write `import lit_rft.configs`"
    )
