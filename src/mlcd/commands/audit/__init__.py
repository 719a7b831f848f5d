"""`mlcd audit ACTION RESULTS`: prove what a run is, verify it, repeat it, compare it, explain it.

    seal      write audit/lock.json: every file by hash, and the run's identity (rule audit)
    bundle    write audit/bundle/: the run in the forms that others' tools read (rule audit)
    verify    is everything as it was sealed? --bytes hashes all of it, --numbers recomputes
    replay    make one file again, from what was recorded, and compare
    diff      where do two runs part, and why?
    explain   where does a file, an image, a cluster or a score come from?

verify, replay and diff end with 0 if it holds, 1 if it differs, and 2 if it cannot be told.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from mlcd.config import SECTIONS
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER

#: One line of a verdict for each level.
_HOLDS = {
    "chain": "every file says what was sealed",
    "bytes": "every byte is what was written",
    "numbers": "numbers follow from their files",
    "signatures": "statement and exports are signed with this key",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the six actions."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, about: str) -> argparse.ArgumentParser:
        one = actions.add_parser(name, help=about, description=about)
        one.add_argument("results", metavar="RESULTS", help="folder of a run's results")
        return one

    seal = action("seal", "write the lock of a finished run and print the run's identity")
    seal.add_argument("--stages", default="{}", metavar="JSON",
                      help="stage → section and code")  # fmt: skip
    seal.add_argument("--inputs", nargs="*", default=[], metavar="FILE",
                      help="URL lists and other files from outside")  # fmt: skip
    seal.add_argument("--rules", default="{}", metavar="JSON",
                      help="rule → rules it waited for")  # fmt: skip
    seal.add_argument("--datasets", nargs="*", default=[], metavar="NAME=IDENTITY",
                      help="data sets that models are judged on")  # fmt: skip
    seal.add_argument("--log", default=None, help="also append log lines to this file")
    bundle = action("bundle", "write a sealed run in the forms that others' tools read")
    bundle.add_argument("--key", default=None, metavar="FILE",
                        help="sign with this private key (PEM, elliptic curve)")  # fmt: skip
    bundle.add_argument("--log", default=None, help="also append log lines to this file")
    verify = action("verify", "tell whether everything is as it was sealed")
    verify.add_argument("--identity", metavar="HEX", help="the run's identity, as you know it")
    verify.add_argument("--bytes", action="store_true", help="hash all files again")
    verify.add_argument("--sample", type=float, default=1.0, metavar="SHARE",
                        help="with --bytes: share of the files [1.0]")  # fmt: skip
    verify.add_argument("--numbers", action="store_true",
                        help="compute a sample of labels, scores and outputs again")  # fmt: skip
    verify.add_argument("--rows", type=int, default=1000, metavar="N",
                        help="with --numbers: rows in all chunks [1000]")  # fmt: skip
    verify.add_argument("--seed", type=int, default=0, help="of the samples [0]")
    verify.add_argument("--public-key", metavar="FILE",
                        help="also check the signatures, with the signer's key (PEM)")  # fmt: skip
    verify.add_argument("--json", action="store_true", help="print JSON instead of lines")
    replay = action("replay", "make files again from what was recorded, and compare them")
    replay.add_argument("paths", nargs="*", metavar="PATH",
                        help="below RESULTS, as labels/NAME.h5")  # fmt: skip
    replay.add_argument("--all", action="store_true",
                        help="one file of each kind, in the order of the chain")  # fmt: skip
    replay.add_argument("--every", action="store_true", help="all files: every chunk of each kind")
    stages = [name for name in SECTIONS if name != "ablate"]
    replay.add_argument("--stage", nargs="+", default=[], metavar="NAME", choices=stages,
                        help="with --all or --every: files of these stages")  # fmt: skip
    replay.add_argument("--lists", nargs="+", default=[], metavar="FILE",
                        help="URL lists, or other files from outside, that are not where the run "
                        "had them; taken if they have the sealed hash")  # fmt: skip
    diff = action("diff", "tell where two runs part, and why")
    diff.add_argument("other", metavar="OTHER", help="folder of another run's results")
    explain = action("explain", "tell where a file, an image, a cluster or a score comes from")
    explain.add_argument("what", metavar="WHAT",
                         help="a file below RESULTS, image:CHUNK/KEY, cluster:N, or "
                         "score:MODEL/DATASET/METRIC")  # fmt: skip


def run(arguments: argparse.Namespace, section: object = None) -> None:
    """Do what the command line asks. Raises :class:`UserError`, and SystemExit(1) if it differs."""
    results = Path(arguments.results)
    work = {
        "seal": _seal, "bundle": _bundle, "verify": _verify, "replay": _replay, "diff": _diff,
        "explain": _explain,
    }  # fmt: skip
    if not work[arguments.action](results, arguments):
        raise SystemExit(1)


def _seal(results: Path, arguments: argparse.Namespace) -> bool:
    from mlcd.commands.audit import cards, lock, system

    try:
        stages: dict[str, Any] = json.loads(arguments.stages)
        codes = [one["code"] for one in stages.values()]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError("--stages: expected JSON, stage → section and code") from None
    if not all(isinstance(code, str) for code in codes):
        raise UserError("--stages: the code of a stage is a hash")
    try:
        rules = {str(rule): sorted(map(str, before))
                 for rule, before in json.loads(arguments.rules).items()}  # fmt: skip
    except (ValueError, TypeError, AttributeError):
        raise UserError("--rules: expected JSON, rule → names of rules") from None
    value = lock.build(results, stages, arguments.inputs, arguments.datasets)
    cards.name_run(results, value)
    lock.write(results, value, system.describe(), system.difference(), rules)
    print(f"identity of this run: {value['root']}")
    return True


def _bundle(results: Path, arguments: argparse.Namespace) -> bool:
    from mlcd.commands.audit import bundle

    key = None if arguments.key is None else Path(arguments.key)
    record = bundle.write(results, key)
    if line := bundle.lacking(record):
        LOGGER.warning("%s", line)
    files = sum(len(part.get("files", {})) for part in record["parts"].values())
    print(f"{results / bundle.FOLDER}: {files} files")
    return True


def _verify(results: Path, arguments: argparse.Namespace) -> bool:
    from mlcd.commands.audit import bundle, integrity, lock, numbers
    from mlcd.commands.audit.bundle import signatures

    if not 0 < arguments.sample <= 1:
        raise UserError("--sample: expected a share above 0, at most 1")
    if arguments.rows < 1:
        raise UserError("--rows: expected at least 1")
    sealed = lock.read(results)
    levels = {"chain": integrity.chain(results, sealed, arguments.identity)}
    told: list[str] = []
    if arguments.bytes:
        levels["bytes"], line = integrity.contents(
            results, sealed, arguments.sample, arguments.seed
        )
        told.append(line)
    skipped: list[str] = []
    if arguments.numbers:
        levels["numbers"], run = numbers.check(results, sealed, arguments.rows, arguments.seed)
        told += run.told
        skipped += run.skipped
    if arguments.public_key is not None:
        folder = results / bundle.FOLDER
        levels["signatures"] = [*signatures.check(results, folder, Path(arguments.public_key))]
    notes = [*integrity.accepted(results), *integrity.not_sealed(results, sealed)]
    if arguments.json:
        found = {
            level: [{"path": one.path, "what": one.what} for one in findings]
            for level, findings in levels.items()
        }
        value = {"identity": sealed["root"], "findings": found, "compared": told,
                 "not_compared": skipped, "notes": notes}  # fmt: skip
        print(json.dumps(value, indent=1))
        return not any(levels.values())
    print(f"identity: {sealed['root']}, {len(sealed['files'])} files")
    for level, findings in levels.items():
        print(f"{level}: {f'{len(findings)} differ' if findings else f'holds, {_HOLDS[level]}'}")
        for one in findings[:20]:
            print(f"  {one.path}: {one.what}")
        if len(findings) > 20:
            print(f"  and {len(findings) - 20} more")
    for line in notes:
        print(f"  note: {line}")
    for line in told:
        print(f"  compared: {line}")
    for line in skipped:
        print(f"  not compared: {line}")
    return not any(levels.values())


def _replay(results: Path, arguments: argparse.Namespace) -> bool:
    from mlcd.commands.audit import lock, replay
    from mlcd.utils.logging import progress

    sealed = lock.read(results)
    lock.nodes_of(sealed)  # no path of it leads out of the scratch folder
    run = replay.Recorded(results, sealed, arguments.lists)
    whole = arguments.all or arguments.every
    if whole == bool(arguments.paths):
        raise UserError("replay: expected paths below RESULTS, or --all, or --every")
    if whole:
        makings = replay.chosen(sealed, arguments.stage, every=arguments.every)
    else:
        makings = replay.makings_of(results, sealed, arguments.paths)
    verdicts: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="mlcd-replay-") as scratch:
        found = replay.each(run, sealed, makings, Path(scratch))
        for outcomes in progress(found, total=len(makings), label="replay", unit="stage"):
            asked = [one for one in outcomes if one.path in arguments.paths]
            for one in asked or replay.folded(outcomes):
                verdicts.add(one.verdict)
                print(f"{one.path}: {one.verdict}: {one.what}", flush=True)
    if verdicts - {"equal"}:
        print("\n".join(replay.machines(results)))
    if "different" in verdicts:
        return False
    if "unknown" in verdicts:
        raise SystemExit(2)
    return True


def _diff(results: Path, arguments: argparse.Namespace) -> bool:
    from mlcd.commands.audit import compare

    equal, lines = compare.difference(results, Path(arguments.other))
    print("\n".join(lines))
    return equal


def _explain(results: Path, arguments: argparse.Namespace) -> bool:
    from mlcd.commands.audit import explain, lock

    what: str = arguments.what
    sealed = lock.read(results)
    if what.startswith("image:"):
        chunk, _, key = what.removeprefix("image:").partition("/")
        lines = explain.image(results, Path(chunk).name, key)
    elif what.startswith("cluster:"):
        number = what.removeprefix("cluster:")
        if not number.isdecimal():
            raise UserError(f"{what}: expected cluster:N, a number")
        lines = explain.cluster(results, int(number))
    elif what.startswith("score:"):
        lines = explain.score(results, sealed, what.removeprefix("score:"))
    else:
        name = Path(what)
        if name.is_relative_to(results):
            name = name.relative_to(results)
        lines = explain.lineage(results, sealed, name.as_posix())
    print("\n".join(lines))
    return True
