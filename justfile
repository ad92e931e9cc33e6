# Six verbs; each is one line one could type by hand.

# Make the environment and run every test
test:
    python3 -m venv .venv && .venv/bin/pip install -q -e '.[dev]' && .venv/bin/pytest -q -n auto

# Run the tests that take less than a second each, while you work
quick:
    .venv/bin/pytest -q -n auto -m "not slow"

# Read the code with every tool: style, format, types, import direction
check:
    .venv/bin/ruff check && .venv/bin/ruff format --check && .venv/bin/mypy && .venv/bin/lint-imports

# Put the code into shape
format:
    .venv/bin/ruff check --fix && .venv/bin/ruff format

# Replay traffic under several policies, for example: just compare my-trace.jsonl --load 0.9
compare *arguments:
    .venv/bin/headway compare {{arguments}}

# All that has to pass before a change lands
ci:
    bash .ci/run
