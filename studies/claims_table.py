"""Write the table "the claims, judged" into README.md and docs/claims.md, from the reports of the studies.

python studies/claims_table.py           after `flatq study report` of each study
python studies/claims_table.py --check   say whether both files hold what the reports say
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FILES = {ROOT / "README.md": "", ROOT / "docs" / "claims.md": "../"}
"""And the way from there to the top of the repository."""
BEGIN, END = "<!-- claims: by studies/claims_table.py -->\n", "<!-- end of claims -->"


def main(check: bool) -> int:
    """0, or 1 where a file differs and is only to be checked."""
    reports = [json.loads(path.read_text("utf-8")) for path in sorted(ROOT.glob("studies/*/report.json"))]
    stale = []
    for path, up in FILES.items():
        text = "\n".join(table(report, up) for report in reports if report["findings"]["claims"])
        before = path.read_text("utf-8")
        head, _, rest = before.partition(BEGIN)
        _, _, tail = rest.partition(END)
        after = head + BEGIN + text + END + tail
        if after != before:
            stale.append(path)
            if not check:
                path.write_text(after, encoding="utf-8")
    for path in stale:
        print(f"{path.relative_to(ROOT)}: {'does not hold what the reports say' if check else 'written'}")
    return int(check and bool(stale))


def table(report: dict[str, Any], up: str) -> str:
    """A study's claims, a row each, in Markdown."""
    done, expected = len(report["cells"]), report["expected"]
    state = f"all {expected} cells" if done == expected else f"provisional, {done} of {expected} cells"
    lines = [
        f"**{report['title']}** ({state}; [page]({up}studies/{report['study']}/index.html))\n",
        "| | claim | contrast, mean and 95 % interval | seeds | direction | the paper's size |",
        "|---|---|---|---|---|---|",
    ]
    for claim in report["findings"]["claims"]:
        weak, paper = claim["weak"], claim["paper"]
        words = [form["verdict"] if form else "not measured" for form in (weak, paper)]
        if claim["premise_absent"]:
            words = [f"{word}; premise absent" for word in words]
        first = (weak or paper or {"conditions": []})["conditions"][:1]
        value = "; ".join(f"{c['name']}: {interval(c)}" for c in first) or claim["missing"]
        seeds = str(first[0]["seeds"]) if first else "0"
        lines.append(f"| {claim['id']} | {claim['title']} | {value} | {seeds} | {words[0]} | {words[1]} |")
    return "\n".join(lines) + "\n"


def interval(condition: dict[str, Any]) -> str:
    """Such as `-0.43 (-0.51 to -0.35)`."""
    if condition["low"] is None:
        return f"{condition['mean']:+.3g}"
    return f"{condition['mean']:+.3g} ({condition['low']:+.3g} to {condition['high']:+.3g})"


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
