"""This module makes many compositions and writes them as a data set. A killed run resumes, and processes share rows.

    OUT/metadata.jsonl      one record per line, in the manifest's order; written last
    OUT/images/ID.png       the composites            (metadata column file_name); of DICOM and NIfTI previews in 8 bits
    OUT/masks/ID.png        their tumour masks        (mask_file_name)
    OUT/stored/ID.dcm, ID.nii.gz   composites in the values of a DICOM or NIfTI background
    OUT/labels/ID.nii.gz    the masks of the latter, in the same place
    OUT/records/ID.json     the same records, one each; a row is done when its record and the files it names are whole
    OUT/LAYOUT/             the data set as another program wants it, where one was asked for (layouts.py)
    OUT/errors.jsonl        the rows that failed or were refused, if any were
    OUT/.composition-lock   the lock of the run that is at work, and one for each rank; one that a killed run left
                            behind does not stop the next

This is the layout of Hugging Face's "imagefolder", where every column `*_file_name` is one of images: `datasets` from
3.4.0 on loads both. Every line of metadata.jsonl has the columns of all rows, null where its own row has none.

Whatever order rows are made in, by however many processes, and wherever those are killed, the files come out the same
(on the same software and the same number of threads). So every row is composed by itself, stored inversions do not
depend on what else was made, and records hold no times. One run at a time works on a folder, which turns away another.

A row that fails, or whose label falls short of the Limits, leaves nothing but its line in errors.jsonl; what an earlier
run made of it goes too. So a further run composes a refused row again, and keeps it if the limits have become
looser. The record of a row that is done has the measures of its label, by which stricter limits refuse it without
composing. Nor is a row composed again whose columns alone have changed (columns.py): its record is written anew.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import torch.distributed as dist
from tqdm import tqdm

from sd21.files import json_lines, sha256, write_json, write_text
from sd21.folders import FolderError, check_untaken, left_locked

from ..datasets.folders import TABLE
from ..methods import METHODS, Composition, compose
from ..model import Model
from ..scans.errors import RowError
from ..scans.images import read_mask
from ..scans.writing import suffix_like
from ..settings import Settings
from . import record
from .columns import columns_of, has_columns
from .layouts import Export
from .limits import Limits
from .manifest import BadRow, Row, misspelled, read_manifest
from .ranks import Ranks
from .request import check_apart
from .single import write_images
from .store import InversionStore
from .summary import Summary, can_be_summed_up, figures_of

TABLES = (TABLE, "errors.jsonl")
KINDS = ("stored/{}.dcm", "stored/{}.nii.gz", "labels/{}.nii.gz")  # of a row's files that an image lacks
COUNTS = ("written", "kept", "refused", "reused", "saved_rows", "composed")


def run_batch(
    manifest: str | Path,
    out: str | Path,
    load_model: Callable,
    settings: Settings,
    *,
    method: str = "ours",
    cache: str | Path | None = None,
    limits: Limits = Limits(),  # noqa: B008 (it is frozen)
    export: Export = Export(),  # noqa: B008 (it is frozen)
    quiet: bool = False,
) -> Summary | None:
    """Compose every row of the manifest that is not done yet. Under torchrun the rows are shared out as ranks get free.

    load_model: takes nothing, returns what sd21.load returns; called after the manifest was read, if any row is good.
    method: a name of methods.METHODS.
    cache: a folder for the inversions, shared by ranks and by runs; without it each rank keeps its last ones in memory.
        Rows are taken by background, so that those that share one come together.
    limits: what a label has to keep, or its row is refused. export: how the data set is laid out.
    quiet: no progress bar, and no line for a bad row at the moment when it turns out to be one.
    Returns the summary on rank 0, None on others. Raises ValueError for a method that does not exist, for a manifest or
    folder that cannot be used (RowError, FolderError), and for results that would take the place of an input
    or of a file that no batch has made (FolderError); nothing is changed then.
    """
    if method not in METHODS:
        raise ValueError(f"method is a name, one of {', '.join(METHODS)}, for records to hold; got {method!r}")
    ranks, out = Ranks(f"batch {out}"), Path(out)
    rows, bad = read_manifest(manifest, settings)
    if ranks.rank == 0:
        _check_nothing_is_lost(Path(manifest), rows, bad, out, export)
        for line, row in bad.items() if not quiet else ():
            _announce(line, row.id, row.error)
        for told in misspelled(rows) if not quiet else ():
            warnings.warn(told, stacklevel=2)
    begin = time.perf_counter()
    with ranks.owning(out, cache=cache, prepare=lambda: _sweep(out, [row.id for row in rows])):
        if rows:
            inversions, model = InversionStore(cache), load_model()
            queue = sorted(rows, key=lambda row: str(row.request.files["background"]))
            maker = _Maker(out, model, method, inversions, limits, export.label_name, ranks.store)
            begin = time.perf_counter()
            for row in ranks.share(queue, title=out.name, quiet=quiet):
                message = maker.attempt(row)
                ranks.store.set(f"error {row.line}", message)
                if message and not quiet:
                    _announce(row.line, row.id, message)
        ranks.finish()
        if ranks.rank > 0:
            return None
        seconds = time.perf_counter() - begin
        errors = _write_tables(rows, bad, out, ranks.store)
        return _summed_up(rows, bad, errors, out, ranks.store, seconds, export.write(out))


def _announce(line: int, row: str | None, error: str) -> None:
    tqdm.write(f"bad row: line {line}{'' if row is None else f', {row}'}: {error}", file=sys.stderr)


def _check_nothing_is_lost(manifest: Path, rows: list[Row], bad: dict[int, BadRow], out: Path, export: Export) -> None:
    """Raises FolderError where a result would take the place of an input, or of a file that no batch has made, or would
    lie beside an input; and RowError where not a row is good and an earlier run's results would all go.

    A file is a batch's if its row's record is there, or if a batch was killed here, which then may have lacked the time
    to write the record.
    """
    ids = [row.id for row in rows] + [row.id for row in bad.values() if row.id is not None]
    outputs = [*(out / name for name in TABLES), *(path for one in ids for path in _all_of(out, one))]
    inputs = [path for row in rows for path in row.request.files.values()]
    inputs += [manifest, *(path for row in bad.values() for path in row.files)]
    check_apart(inputs, [*outputs, *export.files(out)])
    if out.resolve() in {folder.resolve() for folder in {path.parent for path in inputs if path != manifest}}:
        raise FolderError(f"{out} holds inputs, and what reads them would read the results too; name another folder")
    if not left_locked(out):
        ours = {path for one in ids if _files_of(out, one)[2].exists() for path in _all_of(out, one)}
        # A run of which all rows failed leaves an empty table, and no record.
        all_failed = (out / TABLES[0]).is_file() and (out / TABLES[0]).stat().st_size == 0
        if all_failed or any((out / "records").glob("*.json")):
            ours |= {out / name for name in TABLES}
        check_untaken((path for path in outputs if path not in ours), "batch")
    if not rows and not bad:
        raise RowError(f"{manifest} holds no row; expected JSON lines, one for each composition")
    export.check(rows, out)
    if not rows and any((out / "records").glob("*.json")):
        line, row = next(iter(bad.items()))
        raise RowError(
            f"no row of {manifest} can be composed (line {line}: {row.error}), so that all that an earlier run made in "
            f"{out} would go; nothing was changed. Mend the manifest, or name another folder for the results"
        )


def _sweep(out: Path, ids: Iterable[str]) -> None:
    """Remove what a run that was stopped left of these rows without a record."""
    for one in ids:
        if not _files_of(out, one)[2].exists():
            _remove(out, one)


@dataclass(frozen=True)
class _Maker:
    """What a process needs to make rows of."""

    out: Path
    model: Model
    method: str
    inversions: InversionStore
    limits: Limits
    label_name: str
    store: dist.Store

    def attempt(self, row: Row) -> str:
        """Compose one row unless it is done. Returns what went wrong, or why it was refused, or an empty text."""
        out, store = self.out, self.store
        try:
            asked = self._asked(row)
            found, composition = _kept(out, asked), None
            if found is None:
                composition = self._compose(row)
            label = record.label_of(found) if composition is None else composition.label
            if broken := self.limits.broken(label):
                _remove(out, row.id)
                for name in ("refused", *broken):
                    store.add(name, 1)
                return f"refused: {'; '.join(self.limits.faults(label))}"
            if composition is None:
                self._renew(row, found)
            else:
                self._write(row, asked, composition)
        except Exception as error:  # whatever is wrong with one row, the others go on
            return f"{record.told(error)}{_removed_told(out, row.id)}"
        except BaseException:  # Ctrl-C: a picture without its record would be taken for a user's
            _sweep(out, [row.id])
            raise
        store.add("kept" if composition is None else "written", 1)
        return ""

    def _asked(self, row: Row) -> dict:
        return {
            "id": row.id,
            "file_name": f"images/{row.id}.png",
            "mask_file_name": f"masks/{row.id}.png",
            "stored": [path.relative_to(self.out).as_posix() for path in _stored_of(self.out, row)],
            **row.request.describe(),
            "method": self.method,
            **record.provenance(self.model, row.settings),
        }

    def _compose(self, row: Row) -> Composition:
        sample = row.request.read(row.settings.fit, row.settings.size)
        _unlink_table(self.out)
        _remove(self.out, row.id)  # what an earlier run made of other inputs
        composition = compose(self.model, *sample, row.settings, method=self.method, inversions=self.inversions)
        self.store.add("composed", 1)
        _count_reused(composition, self.store)
        return composition

    def _write(self, row: Row, asked: dict, composition: Composition) -> None:
        """Write a row's files, its record last."""
        image, mask, entry = _files_of(self.out, row.id)
        write_images(row.request, composition, asked, image, mask, *_stored_of(self.out, row))
        written = {"sha256": _digests(self.out, asked)}
        told = {**asked, **written, **record.results(composition), **record.environment(self.model)}
        columns = columns_of(row.columns, self.label_name, told["scan"], composition.label, composition.mask)
        write_json(entry, {**told, **columns})

    def _renew(self, row: Row, found: dict) -> None:
        """Write the record of a row that is done anew, if its columns are others than they were."""
        _, mask, entry = _files_of(self.out, row.id)
        told = {name: value for name, value in found.items() if name in record.FIELDS}
        label = record.label_of(found)
        told |= columns_of(row.columns, self.label_name, found["scan"], label, read_mask(mask))
        if json.dumps(told) != json.dumps(found):  # true is 1 to Python, and the order counts
            _unlink_table(self.out)
            write_json(entry, told)


def _unlink_table(out: Path) -> None:
    """It is of other rows from now on, and is written at the end."""
    (out / TABLES[0]).unlink(missing_ok=True)


def _count_reused(composition: Composition, store: dist.Store) -> None:
    for name, report in composition.inversion.items():  # of methods that invert
        if composition.reused[name]:
            store.add("reused", 1)
            store.add("saved_rows", report.rows)


def _files_of(out: Path, row: str) -> tuple[Path, Path, Path]:
    """The files of the row with this id: image, mask, record."""
    return out / "images" / f"{row}.png", out / "masks" / f"{row}.png", out / "records" / f"{row}.json"


def _stored_of(out: Path, row: Row) -> list[Path]:
    """The files in the values of the row's background, where that is DICOM or NIfTI: the composite, and the label."""
    suffix = suffix_like(row.request.files["background"])
    return [out / kind.format(row.id) for kind in KINDS if suffix and kind.endswith(suffix)]


def _all_of(out: Path, row: str) -> list[Path]:
    """All files that a row with this id may have, whatever its background is: its record first."""
    return [*reversed(_files_of(out, row)), *(out / kind.format(row) for kind in KINDS)]


def _digests(out: Path, asked: dict) -> dict[str, str]:
    """The SHA-256 of a row's files but its record, by the same names in every row, as they are columns too; raises
    OSError where one is not there."""
    files = dict(zip(("image", "mask", "stored", "label"), _named(asked), strict=False))
    return {name: sha256(out / path) for name, path in files.items()}


def _named(asked: dict) -> list[str]:
    """The files that a record names."""
    return [asked["file_name"], asked["mask_file_name"], *asked["stored"]]


def _kept(out: Path, asked: dict) -> dict | None:
    """The record, if an earlier run made this very row: same inputs, settings and model, and the files are those that
    it wrote. Else None, as for the records of earlier versions, which do not tell the files."""
    found = record.read_kept(_files_of(out, asked["id"])[2], asked)
    if found is None:
        return None
    if not all((out / name).is_file() for name in _named(asked)):
        warnings.warn(f"the row {asked['id']} lacks one of its files; it is made again", stacklevel=2)
        return None
    whole = can_be_summed_up(found) and record.label_of(found) is not None and has_columns(found)
    if whole and found.get("sha256") == _digests(out, asked):
        return found
    warnings.warn(f"the files of the row {asked['id']} are not those that it wrote; it is made again", stacklevel=2)
    return None


def _remove(out: Path, row: str) -> None:
    """Remove a row's files: its record first, so that a kill leaves no record of what is gone. Raises OSError, when it
    has tried them all."""
    failed = None
    for path in _all_of(out, row):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            failed = error
    if failed is not None:
        raise failed


def _removed_told(out: Path, row: str) -> str:
    """Remove the files of a row that has failed. Returns what to add to the row's message where that fails."""
    try:
        _remove(out, row)
    except OSError as error:
        return f"; and what an earlier run has made of it is still there: {error}"
    return ""


def _write_tables(rows: list[Row], bad: dict[int, BadRow], out: Path, store: dist.Store) -> dict[int, str]:
    """Write the tables, when every row was attempted. Returns the errors, by line."""
    errors = {line: row.error + ("" if row.id is None else _removed_told(out, row.id)) for line, row in bad.items()}
    for row in rows:
        if message := store.get(f"error {row.line}").decode():
            errors[row.line] = message
    good = [row for row in rows if row.line not in errors]
    columns = dict.fromkeys(name for row in good for name in row.columns)
    entries = (json.loads(_files_of(out, row.id)[2].read_text(encoding="utf-8")) for row in good)
    # A loader of tables may look at the first rows only to see which columns there are.
    write_text(out / TABLES[0], json_lines({**entry, **{n: entry.get(n) for n in columns}} for entry in entries))
    ids = {row.line: row.id for row in rows} | {line: row.id for line, row in bad.items()}
    told = [{"line": line, "id": ids[line], "error": errors[line]} for line in sorted(errors)]
    record.write_errors(out / TABLES[1], told)
    return errors


def _summed_up(
    rows: list[Row],
    bad: dict[int, BadRow],
    errors: dict[int, str],
    out: Path,
    store: dist.Store,
    seconds: float,
    notes: list[str],
) -> Summary:
    refused_by = {one.name: store.add(one.name, 0) for one in fields(Limits)}
    return Summary(
        rows=len(rows) + len(bad),
        bad=len(errors),
        refused_by={name: count for name, count in refused_by.items() if count},
        columns=tuple(dict.fromkeys(name for row in rows for name in row.columns)),
        notes=tuple(notes),
        seconds=seconds,
        **{name: store.add(name, 0) for name in COUNTS},
        **figures_of(out / TABLES[0]),
    )
