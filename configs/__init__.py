"""The YAML configurations: one folder a system, one file a stage, `base.yaml` under all."""

if __name__ != "lit_rft.configs":
    raise ImportError(
        f"this package is lit_rft.configs, but it was imported as {__name__}: a folder that holds it is on sys.path; "
        "write `import lit_rft.configs`"
    )
