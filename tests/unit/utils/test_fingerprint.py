"""What of a change of code makes a stage stale, tried on copies of the whole package."""

import ast
import re
from collections import Counter
from typing import ClassVar

import pytest

from helpers.code_trees import (
    SOURCE,
    STAGES,
    computing_otherwise,
    files,
    hashes,
    package,
    replace,
    rewrite,
)
from mlcd.utils.fingerprint import differing, file_identity
from mlcd.utils.fingerprint.code import Code
from mlcd.utils.fingerprint.graph import BOUNDARY


@pytest.fixture(scope="module")
def before():
    return hashes(SOURCE)


@pytest.fixture
def root(package_copy):
    return package_copy


def test_stages_differ(before):
    assert set(before) == set(STAGES) and len(set(before.values())) == len(STAGES)


def test_formatting_and_comments_change_nothing(root, before):
    for path in files(root):
        path.write_text("# a comment\n" + ast.unparse(ast.parse(path.read_text())) + "\n# another")
    assert hashes(root) == before


class _Docstrings(ast.NodeTransformer):
    def visit(self, node):
        self.generic_visit(node)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.Expr(ast.Constant("Another text."))
            node.body = [text, *(node.body[1:] if ast.get_docstring(node) else node.body)]
        return node


def test_docstrings_change_nothing(root, before):
    assert rewrite(root, _Docstrings()) > 100
    assert hashes(root) == before


class _Reworded(ast.NodeTransformer):
    """Other words in what is raised, logged, and shown as help."""

    def __init__(self):
        self.inside = 0
        self.count = 0

    def visit_Raise(self, node):
        if isinstance(node.exc, ast.Call) and getattr(node.exc.func, "id", "") in (
            "UserError", "ValueError",
        ):  # fmt: skip
            node.exc = self._reword(node.exc)
        return node

    def visit_Expr(self, node):
        if ast.unparse(node).startswith("LOGGER."):
            return self._reword(node)
        return self.generic_visit(node)

    def visit_Assert(self, node):
        node.msg = ast.Constant("said")
        return node

    def visit_keyword(self, node):
        return self._reword(node) if node.arg in ("help", "metavar") else self.generic_visit(node)

    def _reword(self, node):
        self.inside += 1
        node = self.generic_visit(node)
        self.inside -= 1
        return node

    def visit_Constant(self, node):
        if not (self.inside and isinstance(node.value, str)):
            return node
        self.count += 1
        return ast.Constant(node.value + "!")


def test_messages_change_nothing(root, before):
    change = _Reworded()
    rewrite(root, change)
    assert change.count > 500
    assert hashes(root) == before


class _Annotations(ast.NodeTransformer):
    OTHER: ClassVar = {"int": "float", "str": "bytes", "bool": "complex"}

    def visit_arg(self, node):
        if isinstance(node.annotation, ast.Name):
            node.annotation.id = self.OTHER.get(node.annotation.id, node.annotation.id)
        return node

    def visit_FunctionDef(self, node):
        if isinstance(node.returns, ast.Name):
            node.returns.id = self.OTHER.get(node.returns.id, node.returns.id)
        return self.generic_visit(node)


def test_annotations_change_nothing(root, before):
    assert rewrite(root, _Annotations()) > 50
    assert hashes(root) == before


class _Locals(ast.NodeTransformer):
    """Renames the local variables of functions that have no function inside."""

    def visit_FunctionDef(self, node):
        inner = [one for one in ast.walk(node) if one is not node]
        scopes = (ast.FunctionDef, ast.Lambda, ast.ClassDef, ast.Global, ast.Nonlocal)
        if any(isinstance(one, scopes) for one in inner):
            return self.generic_visit(node)
        kept = {one.arg for one in inner if isinstance(one, ast.arg)}
        kept |= {one.name for one in inner if isinstance(one, ast.ExceptHandler | ast.MatchAs)}
        names = [one for one in inner if isinstance(one, ast.Name)]
        made = {one.id for one in names if isinstance(one.ctx, ast.Store)} - kept
        for one in names:
            if one.id in made:
                one.id = f"{one.id}_renamed"
        return node


def test_names_of_local_variables_change_nothing(root, before):
    assert rewrite(root, _Locals()) > 100
    assert hashes(root) == before


def test_names_of_private_functions_and_classes_change_nothing(root, before):
    texts = {path: path.read_text() for path in files(root)}
    homes = Counter(word for text in texts.values() for word in set(re.findall(r"\w+", text)))
    count = 0
    for path, text in texts.items():
        found = (ast.FunctionDef, ast.ClassDef)
        names = [node.name for node in ast.parse(text).body if isinstance(node, found)]
        own = [name for name in names if name.startswith("_") and homes[name] == 1]
        if own:
            path.write_text(re.sub(rf"\b({'|'.join(own)})\b", r"\1_renamed", text))
            count += len(own)
    assert count > 200
    assert hashes(root) == before


#: Public names: of a class, a function, a method, a property, and a property of the config.
RENAMED = {
    "ShardedClassifier": "DividedClassifier",
    "agreed_checkpoint": "common_checkpoint",
    "_classifier_step": "_step_of_centers",
    "steps_per_epoch": "steps_of_epoch",
    "class_metric": "metric_of_classes",
}


def test_public_names_change_nothing(root, before):
    for name, other in RENAMED.items():
        assert replace(root, rf"\b{name}\b", other) > 1, name
    assert hashes(root) == before


def test_parameters_change_nothing_with_their_callers(root, before):
    path = root / "training" / "lr_schedule.py"
    path.write_text(re.sub(r"\bwarmup\b", "rising", path.read_text()))
    assert hashes(root) == before


def test_moves_change_nothing(root, before):
    """A module and a package under other names, in other places."""
    (root / "losses" / "objective.py").rename(root / "losses" / "margins.py")
    assert replace(root, r"mlcd\.losses\.objective", "mlcd.losses.margins")
    (root / "classifier").rename(root / "models" / "head")
    assert replace(root, r"mlcd\.classifier\b", "mlcd.models.head") > 5
    assert replace(root, r"from mlcd import classifier\b", "from mlcd.models import head") == 0
    assert hashes(root) == before


def test_a_function_that_moves_changes_nothing(root, before):
    old, new = root / "training" / "lr_schedule.py", root / "training" / "rate.py"
    new.write_text(old.read_text())
    old.write_text("from mlcd.training.rate import factor\n")
    assert "def factor" in new.read_text()
    assert hashes(root) == before


def test_a_property_of_the_config_that_decides_a_score(root, before):
    path = root / "config" / "labeled.py"
    text = path.read_text()
    old = 'self.metric if self.metric in CLASS_METRICS else "accuracy"'
    assert text.count(old) == 1
    path.write_text(text.replace(old, f'"roc_auc" if self.metric is None else {old}'))
    stale = {stage for stage, value in hashes(root).items() if value != before[stage]}
    assert "evaluate" in stale and not stale & {"embed", "cluster", "label", "train"}


def test_a_value_of_the_config_is_no_code(root, before):
    path = root / "config" / "train.py"
    text = path.read_text()
    path.write_text(text.replace("margin: float = Field(0.3", "margin: float = Field(0.25"))
    assert path.read_text() != text
    assert hashes(root) == before


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("data/labeled/templates.yaml", {"evaluate"}),
        ("stages/report/templates/page.html", {"report"}),
        ("stages/report/templates/style.css", {"report"}),
        ("stages/export/templates/card.md", {"export"}),
    ],
)
def test_a_file_that_code_reads_counts(root, before, name, stages):
    path = root / name
    path.write_text(path.read_text() + "\n# one more\n")
    assert {stage for stage, value in hashes(root).items() if value != before[stage]} == stages


def test_how_and_where_work_runs_changes_nothing(root, before):
    count = 0
    for path in files(root):
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        if any(name == room or name.startswith(f"{room}.") for room in BOUNDARY):
            path.write_text("raise SystemExit\n")
            count += 1
    assert count > 20
    assert hashes(root) == before


def test_what_computes_counts_wherever_it_stands(root, before):
    """In every module that a result depends on, a definition computes something else."""
    code = Code(root)
    reached = {stage: set(code.reach(stage).found) for stage in STAGES}
    assert {stage: code.hash(stage) for stage in STAGES} == before
    wrong, tried = [], set()
    for module, key in sorted(set().union(*reached.values())):
        if module in tried or module.startswith("config"):
            continue
        with computing_otherwise(root, module, key) as changed:
            if not changed:
                continue
            tried.add(module)
            new = code.without(module)
            dependent = {stage for stage in STAGES if (module, key) in reached[stage]}
            # Of the stages that do not depend on it one in turn is looked at: it saves time.
            others = [stage for stage in STAGES if stage not in dependent]
            looked = dependent | set(others[len(tried) % len(others) :][:1] if others else ())
            stale = {stage for stage in looked if new.hash(stage) != before[stage]}
            if stale != dependent:
                wrong.append((module, key, sorted(stale)))
    assert wrong == []
    # The others only hold names, such as a package's __init__.
    modules = {module for keys in reached.values() for module, _ in keys}
    assert len(tried) > 0.8 * len([name for name in modules if not name.startswith("config")])


def test_the_modules_that_differ_are_named(root):
    stages = ("train", "embed")
    old = [Code(root).record(stage) for stage in stages]
    path = root / "training" / "lr_schedule.py"
    path.write_text(path.read_text().replace("math.pi", "3.14"))
    # A move at the same time is not named.
    (root / "losses" / "objective.py").rename(root / "losses" / "margins.py")
    replace(root, r"mlcd\.losses\.objective", "mlcd.losses.margins")
    new = [Code(root).record(stage) for stage in stages]
    assert differing(old[0], new[0]) == {"training.lr_schedule": ["factor"]}
    assert differing(old[1], new[1]) == {}


def test_a_changed_call_is_named_by_its_caller(tmp_path):
    first = package(tmp_path / "a", {"stages/train.py": _RUN.format("one")})
    other = package(tmp_path / "b", {"stages/train.py": _RUN.format("two")})
    records = [Code(root).record("train") for root in (first, other)]
    assert differing(*records) == {"stages.train": ["run"]}


_RUN = "def one(): return 1\ndef two(): return 2\ndef run(a, s): return {0}() + one() * two()\n"


def test_identity_follows_content_not_time(tmp_path):
    path = tmp_path / "list.parquet"
    path.write_bytes(b"a" * 3_000_000)
    first = file_identity(str(path))
    path.touch()
    assert file_identity(str(path)) == first
    path.write_bytes(b"a" * 2_999_999 + b"b")
    assert file_identity(str(path)) != first
