#!/usr/bin/env bash
# What a user of pip gets: builds an sdist, and of it a wheel, into dist/. Installs the wheel away from
# the checkout and starts a project there. The code's hashes are those of the checkout, so that moving
# from one to the other makes nothing stale.   make wheel
set -euo pipefail
cd "$(dirname "$0")/.."
checkout=$PWD
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
unset PYTHONPATH

python -m build --outdir "$place/dist" . >"$place/build.log" 2>&1 || { cat "$place/build.log"; exit 1; }

# Beside the wheel the packages of this environment are seen, but not its mlcd: of a folder named in a
# .pth file Python reads no further .pth files.
python -m venv --without-pip "$place/env"
packages=$(python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
echo "$packages" >"$(echo "$place"/env/lib/python3.*/site-packages)/packages.pth"
python -m pip --python "$place/env/bin/python" install --quiet --disable-pip-version-check \
    --no-deps --no-index "$place"/dist/mlcd-*.whl

export PATH="$place/env/bin:$PATH"
mkdir "$place/empty" && cd "$place/empty"
# As many as K of a new project's config.
seq -f "https://example.org/%g.jpg" 1000 >list.txt
mlcd init project --list list.txt
cd project
# Into a file: Snakemake takes a closed pipe for an error.
mlcd run --profile profiles/local --dry-run >"$place/plan.log" 2>&1 || { cat "$place/plan.log"; exit 1; }
grep "Snakefile of mlcd" "$place/plan.log"
grep -m 1 -E "^train +1$" "$place/plan.log"

hashes='
import sys, mlcd
from mlcd.config import SECTIONS
from mlcd.utils.fingerprint import this_code
assert mlcd.__file__.startswith(sys.argv[1]), mlcd.__file__
print(*(f"{stage} {this_code().hash(stage)}" for stage in SECTIONS), sep="\n")'
python -c "$hashes" "$place" >"$place/installed"
PYTHONPATH="$checkout/src" python -c "$hashes" "$checkout" >"$place/here"
diff "$place/here" "$place/installed"

mkdir -p "$checkout/dist"
cp "$place"/dist/* "$checkout/dist/"
ls "$checkout"/dist/*
