"""Sizes, times and models as people read them."""


def size(size_bytes: int) -> str:
    """Write a size in decimal units: ``4.2 MB``."""
    amount = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 999.5:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def seconds(amount: float) -> str:
    """Write a duration: ``0.4 s``, ``3 min 20 s``."""
    if amount < 60:
        return f"{amount:.1f} s"
    minutes, rest = divmod(round(amount), 60)
    return f"{minutes} min {rest} s"


def count(number: int, thing: str) -> str:
    """Write how many: ``1 file``, ``2 files``."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def kind(framework: str, format: str) -> str:  # noqa: A002 (the manifest's word)
    """Write what a model is: ``sklearn model in joblib``, ``onnx model``."""
    return f"{framework} model" if framework == format else f"{framework} model in {format}"
