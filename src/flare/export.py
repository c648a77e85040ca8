"""`python -m flare.export checkpoint=... format=openvino output=...`, see `inference.export`."""

from flare.runs.door import entry

if __name__ == "__main__":
    entry("export", "flare.inference.export", "main")
