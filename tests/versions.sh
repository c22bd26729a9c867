#!/usr/bin/env bash
# The tests on the oldest versions that pyproject.toml declares, all at once, or on the newest there are.
#
#     tests/versions.sh lowest core       NumPy, SciPy and Numba alone
#     tests/versions.sh newest train      also torch, the command and what the other tests need
#     PYTHON=python3.13 tests/versions.sh newest core
#     tests/versions.sh lowest train tests/vae -x      arguments for pytest in place of "all"
#
# It builds an sdist, unpacks it, prints what it installed, and runs the tests that were in it: so the sdist is tested
# too, and the compiled kernels of this checkout are left alone. torch is the build of constraints.txt, where an open
# range may choose one with gigabytes of CUDA. Takes minutes, most of them for compiling kernels; not part of `make test`.
set -euo pipefail
cd "$(dirname "$0")/.."
age=${1:?lowest or newest} extent=${2:?core or train}
shift 2

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
python=$work/venv/bin/python

"$python" - "$age" "$extent" > "$work/requirements.txt" <<'END'
import re, sys, tomllib
age, extent = sys.argv[1:]
whole = tomllib.load(open("pyproject.toml", "rb"))
project, extras = whole["project"], whole["project"]["optional-dependencies"]
declared = whole["build-system"]["requires"] + project["dependencies"]
if extent == "train":
    declared += extras["torch"] + extras["train"] + extras["dev"]
else:
    declared += [each for each in extras["dev"] if re.match("hypothesis|pytest", each)]
torch = re.search("^torch==.*", open("constraints.txt").read(), re.MULTILINE)[0]
for each in declared:
    name, floor = each.split(">=") if ">=" in each else (None, None)
    if name == "torch" and age == "newest":
        print(torch)
    elif name:
        print(f"{name}=={floor}" if age == "lowest" else name)
END
"$python" -m pip install --quiet --upgrade --requirement "$work/requirements.txt" build
"$python" -m pip list
"$python" -m build --sdist --no-isolation --outdir "$work" . > "$work/build.log"
tar --extract --file "$work"/sparseggm-*.tar.gz --directory "$work" --one-top-level=source --strip-components=1

cd "$work/source"
[ "$extent" = train ] || set -- --ignore=tests/test_readme.py \
    --ignore=tests/test_benchmarks.py "$@"
OMP_NUM_THREADS=1 "$python" -m pytest -n "${WORKERS:-auto}" "$@"
