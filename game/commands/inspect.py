"""Say what a weight file is; with two, how they differ."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from game.options import ConsoleProgress, UsageError, whole

if TYPE_CHECKING:
    from engine import Comparison, FileReport


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="a .safetensors or .pth file, or a folder of them")
    parser.add_argument("other", type=Path, nargs="?", metavar="OTHER", help="a second file to compare with")
    parser.add_argument(
        "--world", action="append", default=[], metavar="NAME", help="hold it against this yaml too, beside the bundled worlds"
    )
    parser.add_argument("--show", type=whole(0, 1_000_000), default=10, metavar="N", help="at most N names of each kind (10)")
    parser.add_argument("--json", action="store_true", help="everything as JSON")


def run(args: argparse.Namespace) -> int:
    for path in (args.file, args.other):
        if path is not None and not path.exists():
            raise UsageError(f"{path}: no such file")
    if args.world:
        from engine import load_config

        for name in args.world:  # before a file, or each of a folder, is read
            load_config(name)
    if args.other is not None:
        return _compare(args)
    if args.file.is_dir():
        return _folder(args)
    from engine import inspect_weights

    progress = ConsoleProgress(args.file.name, "reading")
    report = inspect_weights(args.file, args.world, progress=lambda part: progress("numbers", part))
    print(json.dumps(_plain(report), indent=2) if args.json else _text(report, args.show))
    return 0


def _compare(args: argparse.Namespace) -> int:
    if args.file.is_dir() or args.other.is_dir():
        raise UsageError(f"{args.file if args.file.is_dir() else args.other} is a folder; give two files to compare")
    from engine import compare_weights

    progress = ConsoleProgress(args.file.name, "comparing")
    found = compare_weights(args.file, args.other, progress=lambda part: progress("numbers", part))
    print(json.dumps(_finite({**asdict(found), "equal": found.equal}), indent=2) if args.json else _comparison(found, args))
    return 0


def _folder(args: argparse.Namespace) -> int:
    """One line a file, from their tables of contents alone."""
    from engine import WorldError, inspect_weights, weight_files

    files = weight_files(args.file)
    if not files:
        raise UsageError(f"{args.file}: there are no .safetensors or .pth files in this folder")
    found: list[tuple[Path, FileReport | str]] = []
    for file in files:
        try:
            found.append((file, inspect_weights(file, args.world, numbers=False)))
        except WorldError as error:
            found.append((file, str(error)))
    if args.json:
        print(json.dumps([{"path": str(file), "error": item} if isinstance(item, str) else _plain(item) for file, item in found], indent=2))
        return 0
    for file, item in found:
        name = file.relative_to(args.file)
        print(f"{name}: {item.removeprefix(f'{file} ')}" if isinstance(item, str) else f"{name}: {_place(item)}, {_size(item)}")
    return 0


def _text(report: FileReport, show: int) -> str:
    lines = [str(report.path), f"  is          {report.what}" if report.what else "  is          nothing known by its names"]
    lines += [f"  belongs to  {_place(report)}", f"  holds       {_size(report)}", f"  sha256      {report.sha256}"]
    nearest = report.nearest
    if nearest is not None:
        if nearest.ignored:
            lines.append(f"  ignored     {nearest.ignored} tensors of other parts")
        lines += _names("missing", list(nearest.missing), show)
        lines += _names("unexpected", list(nearest.unexpected), show)
        lines += _names("misshapen", [f"{n}: {list(a)} instead of {list(b)}" for n, (a, b) in nearest.misshapen.items()], show)
    bad = report.nonfinite or {}
    lines += _names("not finite", [f"{name}: {count:,} numbers" for name, count in bad.items()], show) or ["  not finite  none"]
    if report.advice and not (nearest is not None and nearest.fits):
        lines.append(f"  to do       {report.advice}")
    return "\n".join(lines)


def _place(report: FileReport) -> str:
    nearest = report.nearest
    if nearest is None:
        return f"no known world ({report.what})" if report.what else "no known world"
    which = f"the part '{nearest.part}' of {', '.join(nearest.worlds)}"
    if nearest.fits:
        return which
    counts = f"{len(nearest.missing)} missing, {len(nearest.unexpected)} unexpected, {len(nearest.misshapen)} misshapen"
    what = f"{report.what}; " if report.what else ""
    return f"no known world ({what}nearest is {which}: {counts})"


def _size(report: FileReport) -> str:
    dtypes = report.dtypes if len(report.dtypes) > 1 else list(report.dtypes)
    kinds = ", ".join(f"{dtype} {count:,}" for dtype, count in dtypes.items()) if isinstance(dtypes, dict) else ", ".join(dtypes)
    return f"{report.parameters:,} parameters in {report.tensors:,} tensors ({kinds or 'empty'}), {report.size:,} bytes"


def _comparison(found: Comparison, args: argparse.Namespace) -> str:
    if found.equal:
        return f"the same: {found.same:,} tensors with equal numbers"
    lines = [f"{found.same:,} tensors are equal, {len(found.different):,} differ"]
    widths = max((len(item.name) for item in found.different[: args.show]), default=0)
    if found.different and args.show:
        lines.append(f"  {'tensor':<{widths}}  {'relative':>9}  {'largest':>9}")
        lines += [f"  {item.name:<{widths}}  {item.relative:>9.2e}  {item.largest:>9.2e}" for item in found.different[: args.show]]
    if len(found.different) > args.show:
        lines.append(f"  … and {len(found.different) - args.show:,} more")
    lines += _names("misshapen", [f"{name}: {list(a)} and {list(b)}" for name, (a, b) in found.misshapen.items()], args.show)
    lines += _names(f"only in {args.file}", list(found.only_first), args.show)
    lines += _names(f"only in {args.other}", list(found.only_second), args.show)
    return "\n".join(lines)


def _names(title: str, names: list[str], show: int) -> list[str]:
    """A heading with the count, and the first names; nothing for none."""
    if not names:
        return []
    more = [f"    … and {len(names) - show:,} more"] if len(names) > show else []
    return [f"  {title}: {len(names):,}", *(f"    {name[:200]}" for name in names[:show]), *more]


def _finite(value: Any) -> Any:
    """The same, infinite numbers as text: JSON has no word for them."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _plain(report: FileReport) -> dict[str, Any]:
    plain = {**asdict(report), "path": str(report.path)}
    if report.nearest is not None:
        plain["nearest"]["fits"] = report.nearest.fits
    return plain
