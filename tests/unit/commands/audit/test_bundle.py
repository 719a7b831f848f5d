"""`mlcd audit bundle`: what each part says, equal bytes, and what verify finds."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from helpers import crate_validator
from helpers.audit_changes import audit, flip
from helpers.exports import export
from helpers.refusals import refused
from helpers.report_stores import CHUNKS, Stores
from mlcd import cli
from mlcd.commands.audit import bundle, lock
from mlcd.commands.audit.bundle import crate, jobs, sbom
from mlcd.models import trainable
from mlcd.utils.files import sha256_file
from mlcd.utils.records import read_record

for name in ("rocrate", "cyclonedx_py", "in_toto_attestation", "securesystemslib", "model_signing"):
    pytest.importorskip(name, reason="needs mlcd[audit]")

STAGES = {
    "label": {"section": {"top": 3}, "code": "a" * 16},
    "train": {"section": {"lr": 0.1}, "code": "b" * 16},
}
RULES = {"label": ["embed"], "embed": ["download"], "download": []}


@pytest.fixture(scope="module")
def sealed(tmp_path_factory) -> Path:
    """A sealed run with an export, and no bundle."""
    base = tmp_path_factory.mktemp("run")
    results = base / "results"
    Stores(results)
    for name in (".snakemake", "ablate", "report"):
        (results / name).rename(base / name)
    encoder = trainable.build("test_vit", 8, 32, seed=0)
    trainable.save(encoder, results / "train", {"steps": 3})
    export(results / "train", results / "export", "timm", license="cc-by-4.0")
    photos = base / "photos.txt"
    photos.write_text("https://example.org/1.jpg\n")
    words = ["--stages", json.dumps(STAGES), "--rules", json.dumps(RULES), "--inputs", str(photos),
             "--datasets", "few=1f38b8ee56c77480"]  # fmt: skip
    assert cli.main(["audit", "seal", str(results), *words]) == 0
    return results


@pytest.fixture(scope="module")
def bundled(sealed, tmp_path_factory) -> Path:
    """A copy of it with its bundle."""
    results = tmp_path_factory.mktemp("bundled") / "results"
    shutil.copytree(sealed, results)
    assert cli.main(["audit", "bundle", str(results)]) == 0
    return results


@pytest.fixture
def changed(bundled, tmp_path) -> Path:
    """A copy of that, to be changed."""
    return Path(shutil.copytree(bundled, tmp_path / "results"))


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    """A folder with two key pairs, a.pem and a.pub, b.pem and b.pub, and one of another kind."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    folder = tmp_path_factory.mktemp("keys")
    made = {"a": ec.generate_private_key(ec.SECP256R1()),
            "b": ec.generate_private_key(ec.SECP384R1()),
            "other": ed25519.Ed25519PrivateKey.generate()}  # fmt: skip
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    for name, key in made.items():
        private = key.private_bytes(pem, form, serialization.NoEncryption())
        (folder / f"{name}.pem").write_bytes(private)
        public = key.public_key()
        about = serialization.PublicFormat.SubjectPublicKeyInfo
        (folder / f"{name}.pub").write_bytes(public.public_bytes(pem, about))
    return folder


def contents(results: Path) -> dict[str, str]:
    """Return file of the bundle, its record included, → SHA-256; but for the file of times."""
    files = [results / bundle.RECORD, *(results / bundle.FOLDER).rglob("*")]
    return {path.relative_to(results).as_posix(): sha256_file(path)
            for path in files if path.is_file() and path.name != "times.json"}  # fmt: skip


def entities(results: Path) -> dict[str, dict]:
    text = (results / bundle.FOLDER / crate.FILE).read_text(encoding="utf-8")
    return {entity["@id"]: entity for entity in json.loads(text)["@graph"]}


def ids(value: object) -> set[str]:
    return {one["@id"] for one in (value if isinstance(value, list) else [value])}


def test_equal_runs_have_equal_bundles_wherever_they_lie(bundled, sealed, tmp_path):
    there = shutil.copytree(sealed, tmp_path / "elsewhere" / "run", copy_function=shutil.copy)
    assert cli.main(["audit", "bundle", str(there)]) == 0
    assert contents(there) == contents(bundled)
    assert len(contents(there)) > 20
    assert str(there).encode() not in b"".join(
        path.read_bytes() for path in (there / bundle.FOLDER).rglob("*") if path.is_file()
    )


def test_a_bundle_is_found_whole_or_what_is_wrong_with_it(sealed, changed):
    assert audit("verify", str(sealed))[0] == 0  # a run without one
    assert audit("verify", str(changed))[0] == 0
    folder = changed / bundle.FOLDER
    for change, said in {
        lambda: flip(folder / "sbom.json", 100, 1): "bundle/sbom.json: not what was written",
        lambda: flip(folder / "times.json", 20, 1): "bundle/times.json: not what was written",
        lambda: (folder / "jobs.dot").unlink(): "bundle/jobs.dot: missing",
        lambda: (folder / "rules" / "more.smk").write_text("x"): "rules/more.smk: added since",
        lambda: flip(changed / bundle.RECORD, 30, 1): "bundle.json: damaged or edited",
        lambda: (changed / bundle.RECORD).unlink(): "bundle.json: missing",
    }.items():
        change()
        status, told = audit("verify", str(changed))
        assert status == 1
        assert said in told


def test_a_part_that_fails_is_told_and_the_others_are_written(changed, monkeypatch, capsys):
    def fails(run, folder):
        (folder / "half.json").write_text("{")
        raise RuntimeError("another version")

    monkeypatch.setattr(sbom, "write", fails)
    assert cli.main(["audit", "bundle", str(changed)]) == 0
    assert "the bundle lacks sbom" in capsys.readouterr().err
    parts = read_record(changed / bundle.RECORD, "audit")["parts"]
    assert parts["sbom"] == {"failed": "RuntimeError: another version"}
    assert all("files" in part for name, part in parts.items() if name != "sbom")
    assert not (changed / bundle.FOLDER / "half.json").exists()
    assert audit("verify", str(changed))[0] == 0


def test_a_bundle_of_another_seal_is_told(changed, monkeypatch):
    monkeypatch.setattr(bundle, "PARTS", ("graph", "times"))
    (changed / "train" / "metrics.jsonl").write_text("{}\n")
    assert cli.main(["audit", "seal", str(changed), "--stages", json.dumps(STAGES)]) == 0
    status, told = audit("verify", str(changed))
    assert (status, "bundle.json: is of another seal" in told) == (1, True)
    assert cli.main(["audit", "bundle", str(changed)]) == 0
    assert audit("verify", str(changed))[0] == 0


def test_a_file_of_somebody_else_is_never_removed(changed, capsys):
    mine = changed / bundle.FOLDER / "notes.txt"
    mine.write_text("mine")
    capsys.readouterr()
    assert cli.main(["audit", "bundle", str(changed)]) == 2
    refused(capsys, "notes.txt: of no bundle")
    # Snakemake removes the record before the rule runs again.
    (changed / bundle.RECORD).unlink()
    assert cli.main(["audit", "bundle", str(changed)]) == 2
    refused(capsys, "notes.txt: of no bundle")
    assert mine.read_text() == "mine"


def test_a_run_without_the_extra_says_what_is_missing(sealed, tmp_path, monkeypatch, capsys):
    results = Path(shutil.copytree(sealed, tmp_path / "results"))
    for name in ("rocrate.rocrate", "cyclonedx_py", "in_toto_attestation"):
        monkeypatch.setitem(sys.modules, name, None)
    capsys.readouterr()
    assert cli.main(["audit", "bundle", str(results)]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "lacks" in line]
    assert len(lines) == 1
    assert all(word in lines[0] for word in ("rocrate", "cyclonedx-bom", "mlcd[audit]"))
    parts = read_record(results / bundle.RECORD, "audit")["parts"]
    assert parts["sbom"] == {"lacking": "cyclonedx-bom"}
    assert "jobs.dot" in parts["graph"]["files"]
    assert audit("verify", str(results))[0] == 0


def test_each_job_names_what_it_read_and_wrote(bundled):
    found, base = entities(bundled), crate.base_of(read_record(bundled / lock.LOCK, "x")["root"])
    job = found[f"#job-label-{CHUNKS[0]}"]
    assert ids(job["instrument"]) == {"#tool-label"}
    assert ids(job["result"]) == {f"{base}labels/{CHUNKS[0]}.h5"}
    read = {f"{base}embeddings/{CHUNKS[0]}.h5", f"{base}clusters/centroids.h5", "#section-label"}
    assert ids(job["object"]) == read
    assert found["#job-cluster"]["object"] == {"@id": "#section-cluster"}
    assert json.loads(found["#section-label"]["value"]) == {"top": 3}
    files = [name for name in found if name.startswith(base)]
    assert len(files) > 25
    for name in files:
        assert found[name]["sha256"] == sha256_file(bundled / name.removeprefix(base))


def test_a_stage_of_very_many_jobs_is_one_action_with_a_table(sealed, tmp_path, monkeypatch):
    monkeypatch.setattr(crate, "MOST_JOBS", 3)
    monkeypatch.setattr(bundle, "PARTS", ("crate",))
    results = Path(shutil.copytree(sealed, tmp_path / "results"))
    bundle.write(results)
    found = entities(results)
    assert f"#job-label-{CHUNKS[0]}" not in found
    assert ids(found["#job-label"]["result"]) == {"jobs.parquet"}
    rows = pq.read_table(results / bundle.FOLDER / "jobs.parquet").to_pylist()
    files = read_record(results / lock.LOCK, "audit")["files"]
    assert {row["path"] for row in rows} == set(files)
    row = next(row for row in rows if row["path"] == f"labels/{CHUNKS[1]}.h5")
    assert (row["stage"], row["part"]) == ("label", CHUNKS[1])
    assert row["sha256"] == sha256_file(results / row["path"])


@pytest.fixture(scope="module")
def validator(request) -> Path:
    """The folder of an installed validator, kept between test runs."""
    folder = Path(request.config.cache.mkdir("roc-validator"))
    try:
        crate_validator.install(folder)
    except crate_validator.Missing as why:
        pytest.skip(f"roc-validator cannot be installed here: {why}")
    return folder


def test_the_crate_passes_all_checks_of_the_validator(bundled, validator):
    said = crate_validator.validate(validator, bundled / bundle.FOLDER)
    assert said["issues"] == []
    assert said["statistics"]["total_passed_checks"] == said["statistics"]["total_checks"] == 85
    assert said["skipped_checks"] == 0


def test_a_crate_without_an_instrument_is_refused(changed, validator):
    path = changed / bundle.FOLDER / crate.FILE
    value = json.loads(path.read_text(encoding="utf-8"))
    next(one for one in value["@graph"] if one["@id"] == "#job-train").pop("instrument")
    path.write_text(json.dumps(value), encoding="utf-8")
    said = crate_validator.validate(validator, path.parent)
    assert not said["passed"]
    assert any("MUST have an instrument" in issue["message"] for issue in said["issues"])


def test_the_bill_of_materials_has_the_hash_of_each_record(bundled):
    import h5py
    from cyclonedx.schema import OutputFormat, SchemaVersion
    from cyclonedx.validation import make_schemabased_validator

    text = (bundled / bundle.FOLDER / "sbom.json").read_text(encoding="utf-8")
    bom = json.loads(text)
    packages = {one["name"]: one for one in bom["components"]}
    place = Path(h5py.__file__).parents[1] / f"h5py-{h5py.__version__}.dist-info" / "RECORD"
    assert packages["h5py"]["hashes"] == [{"alg": "SHA-256", "content": sha256_file(place)}]
    assert sum("hashes" in one for one in packages.values()) > 0.9 * len(packages) > 90
    assert "file:" not in text
    assert "timestamp" not in bom["metadata"]
    # The schema takes a quarter of a minute for all of them.
    few = {"h5py", "numpy", "mlcd"}
    bom["components"] = [one for one in bom["components"] if one["name"] in few]
    kept = {one["bom-ref"] for one in bom["components"]}
    bom["dependencies"] = [{"ref": ref} for ref in sorted(kept)]
    judge = make_schemabased_validator(OutputFormat.JSON, SchemaVersion.V1_6)
    assert judge.validate_str(json.dumps(bom)) is None


def test_the_statement_is_of_encoder_and_exports(bundled):
    statement = json.loads((bundled / bundle.FOLDER / "statement.json").read_text())
    subjects = {one["name"]: one["digest"]["sha256"] for one in statement["subject"]}
    assert {"train/encoder.safetensors", "export/timm/model.safetensors"} <= set(subjects)
    for name, digest in subjects.items():
        if not name.endswith("check.json"):
            assert digest == sha256_file(bundled / name), name
    made = statement["predicate"]
    assert made["buildDefinition"]["externalParameters"]["label"] == {"top": 3}
    names = {one["name"] for one in made["buildDefinition"]["resolvedDependencies"]}
    assert "photos.txt" in names
    byproducts = {one["name"]: one["digest"] for one in made["runDetails"]["byproducts"]}
    assert byproducts["audit/lock.json"]["sha256"] == sha256_file(bundled / lock.LOCK)


def test_signatures_hold_for_this_run_and_this_key_alone(sealed, keys, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "PARTS", ("statement", "times"))
    results = Path(shutil.copytree(sealed, tmp_path / "results"))
    folder = str(results)
    assert audit("bundle", folder, "--key", str(keys / "a.pem"))[0] == 0
    mine = ["--public-key", str(keys / "a.pub")]
    assert audit("verify", folder)[0] == 0
    status, told = audit("verify", folder, *mine)
    assert (status, "signatures: holds" in told) == (0, True)
    status, told = audit("verify", folder, "--public-key", str(keys / "b.pub"))
    assert (status, "signatures: 2 differ" in told) == (1, True)
    flip(results / "export" / "timm" / "model.safetensors", 5000, 1)
    status, told = audit("verify", folder, *mine)
    assert (status, "timm.sig: does not hold" in told) == (1, True)
    assert "statement.dsse.json" not in told
    # Sealed anew, the statement that was signed is another run's.
    flip(results / "export" / "timm" / "model.safetensors", 5000, 1)
    (results / "train" / "metrics.jsonl").write_text("{}\n")
    assert cli.main(["audit", "seal", folder, "--stages", json.dumps(STAGES)]) == 0
    assert "statement.dsse.json: is of another run" in audit("verify", folder, *mine)[1]
    (results / bundle.FOLDER / "statement.json").write_text("{}")
    assert "statement.dsse.json: is not of statement.json" in audit("verify", folder, *mine)[1]
    flip(results / bundle.FOLDER / "signatures" / "timm.sig", 100, 1)
    assert "signatures/timm.sig: not what was written" in audit("verify", folder)[1]


def test_what_is_no_key_is_refused(bundled, keys, tmp_path, capsys):
    results = str(bundled)
    (tmp_path / "none.pem").write_text("none")
    for words, said in (
        (["bundle", results, "--key", str(keys / "other.pem")], "not of the curve"),
        (["bundle", results, "--key", str(tmp_path / "none.pem")], "no private key"),
        (["bundle", results, "--key", str(tmp_path / "missing.pem")], "No such file"),
        (["verify", results, "--public-key", str(keys / "a.pem")], "no public key"),
        (["verify", results, "--public-key", str(keys / "a.pub")], "this run is not signed"),
    ):
        capsys.readouterr()
        assert cli.main(["audit", *words]) == 2
        refused(capsys, said)


def test_graphs_have_rules_and_jobs(bundled):
    rules = (bundled / bundle.FOLDER / "rules.dot").read_text()
    assert '"embed" -> "label";' in rules
    drawn = (bundled / bundle.FOLDER / "jobs.dot").read_text()
    assert f'"embed {CHUNKS[0]}" -> "label {CHUNKS[0]}";' in drawn
    assert '"train" -> "export timm";' in drawn


def test_jobs_of_a_stage_become_one(bundled):
    whole = jobs.jobs_of(read_record(bundled / lock.LOCK, "audit"))
    stages = {job.stage: job for job in jobs.by_stage(whole)}
    assert len([job for job in whole if job.stage == "label"]) == len(CHUNKS) + 1
    assert stages["label"].jobs == ("cluster", "embed")
    assert set(stages["label"].files) == {
        path for job in whole if job.stage == "label" for path in job.files
    }
