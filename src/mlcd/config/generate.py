"""Generate config.yaml, the config of a new project, the JSON schema and the table in docs.

python -m mlcd.config.generate            write the files
python -m mlcd.config.generate --check    exit 1 and name the first that differs
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mlcd.config import SECTIONS, Config
from mlcd.utils.files import write_text

_WIDTH = 96
PIPE = r"\|"
#: What the config of a new project says, section → key → value: what is most often set, for a
#: small run on photographs. Every other key keeps its default, which is the demo's.
_PROJECT: dict[str, dict[str, Any]] = {
    "prepare": {
        "chunk_rows": 100_000, "url_column": "url", "caption_column": None, "hash_column": None,
    },
    "download": {"image_size": None},
    "embed": {"model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"},
    "cluster": {"k": 1000},
    "label": {"top": 8},
    "train": {
        "model": "open_clip:ViT-B-32", "embedding_dim": 512, "image_size": 224, "epochs": 20,
        "batch_size": 256,
    },
    "evaluate": {"datasets": []},
    "export": {"formats": ["open_clip"]},
}  # fmt: skip


def config_yaml() -> str:
    """Return config.yaml: every key with its default under a comment of unit and reason."""
    lines = [
        "# yaml-language-server: $schema=workflow/config.schema.json",
        "# The laptop default: the demo's images, two cores, minutes. Presets for LAION-400M,",
        "# COYO-700M and ImageNet are in workflow/presets. Leave a key out to take its default.",
        "# Generated from src/mlcd/config by `python -m mlcd.config.generate`.",
    ]
    default = Config()
    for name, field in Config.model_fields.items():
        lines.append("")
        value = getattr(default, name)
        if name in SECTIONS:
            lines += _comment((SECTIONS[name].__doc__ or "").split("\n\n")[0], "")
            lines.append(f"{name}:")
            for key, inner in SECTIONS[name].model_fields.items():
                lines += _comment(inner.description or "", "  ")
                lines += _item(key, _plain(getattr(value, key)), "  ")
        else:
            lines += _comment(field.description or "", "")
            lines += _item(name, _plain(value), "")
    return "\n".join(lines) + "\n"


def project_yaml(metadata: Sequence[str] = ("lists/*.parquet",)) -> str:
    """Return config.yaml of a new project, whose images are those of `metadata`."""
    lines = [
        "# A run of mlcd: the keys that are most often set. Every other key keeps its default:",
        "# mlcd STAGE --help lists all of a section. Paths are relative to the working directory.",
    ]
    for name, value in {"metadata": list(metadata), "results": Config().results}.items():
        lines += ["", *_comment(Config.model_fields[name].description or "", "")]
        lines += _item(name, value, "")
    for name, keys in _PROJECT.items():
        lines += ["", *_comment((SECTIONS[name].__doc__ or "").split("\n\n")[0], ""), f"{name}:"]
        for key, value in keys.items():
            lines += _comment(SECTIONS[name].model_fields[key].description or "", "  ")
            lines += _item(key, value, "  ")
    return "\n".join(lines) + "\n"


def json_schema() -> str:
    """Return the JSON schema, for completion and checks in editors."""
    schema = Config.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def docs_table() -> str:
    """Return docs/reference/config.md: one table per section."""
    lines = [
        "# Configuration",
        "",
        "Every key of `config.yaml`. Generated from `src/mlcd/config` by",
        "`python -m mlcd.config.generate`; editors complete keys from the schema in `workflow/`.",
        "Where a stage runs and how wide (nodes, ranks, threads, memory) stands in `profiles/`.",
    ]
    top = {name: field for name, field in Config.model_fields.items() if name not in SECTIONS}
    lines += ["", "## Top level", "", *_table(top, Config())]
    for name, model in SECTIONS.items():
        about = " ".join((model.__doc__ or "").split("\n\n")[0].split())
        lines += ["", f"## {name}", "", about, "", *_table(model.model_fields, model())]
        for key, inner in _nested(model).items():
            about = f"Each item of `{name}.{key}`: {(inner.__doc__ or '').strip()}"
            lines += ["", about, "", *_table(inner.model_fields, None)]
    return "\n".join(lines) + "\n"


def _table(fields: dict[str, FieldInfo], default: BaseModel | None) -> list[str]:
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for key, field in fields.items():
        value = _plain(getattr(default, key)) if default else _plain(field.get_default())
        shown = "required" if field.is_required() else f"`{json.dumps(value, ensure_ascii=False)}`"
        rows.append(f"| `{key}` | {shown} | {(field.description or '').replace('|', PIPE)} |")
    return rows


def _nested(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Return the keys of `model` that are lists of models, with those models."""
    found = {}
    for key, field in model.model_fields.items():
        for inner in getattr(field.annotation, "__args__", ()):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                found[key] = inner
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        _WIDTH,
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}# ",
    )


def _item(key: str, value: Any, indent: str) -> list[str]:
    """Return 'key: value' lines; lists of words or models one item per line."""
    block = bool(value) and isinstance(value, list) and not isinstance(value[0], int | float)
    if block:
        text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=_WIDTH)
        return [f"{indent}{key}:", *(f"{indent}  {line}" for line in text.rstrip().splitlines())]
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    return [f"{indent}{key}: {text}"]


#: File → function that returns its text.
GENERATED: dict[str, Callable[[], str]] = {
    "config.yaml": config_yaml,
    "config/config.yaml": project_yaml,
    "workflow/config.schema.json": json_schema,
    "docs/reference/config.md": docs_table,
}


def main(arguments: list[str]) -> int:
    """Write the generated files, or check them."""
    for name, text in GENERATED.items():
        path = Path(name)
        if "--check" not in arguments:
            write_text(path, text())
        elif not path.exists() or path.read_text(encoding="utf-8") != text():
            print(f"{name}: differs from src/mlcd/config; run python -m mlcd.config.generate")
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
