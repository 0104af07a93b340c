"""Another split of the demo's speech by voices, for questions that came up after its test set was looked at.

    python tests/benchmarks/ranks/fresh_split.py -o runs/fresh

Ten voices of the train set, drawn once, are the test set; the voices of the old test set are trained on instead; dev stays.
"""

import argparse
import json
import random
from pathlib import Path

SPEECH = Path(__file__).resolve().parents[3] / "edgeqlora" / "demo" / "speech"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    output = parser.parse_args().output
    rows = {}
    for name in ("train", "dev", "test"):
        found = [json.loads(line) for line in (SPEECH / f"{name}.jsonl").read_text().splitlines()]
        rows[name] = [{**row, "audio": str(SPEECH / row["audio"])} for row in found]
    voices = sorted({row["speaker"] for row in rows["train"]})
    drawn = set(random.Random(0).sample(voices, 10))
    split = {
        "train": [row for row in rows["train"] if row["speaker"] not in drawn] + rows["test"],
        "dev": rows["dev"],
        "test": [row for row in rows["train"] if row["speaker"] in drawn],
    }
    output.mkdir(parents=True, exist_ok=True)
    for name, chosen in split.items():
        (output / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
        print(name, len(chosen), "clips,", len({row["speaker"] for row in chosen}), "voices")


if __name__ == "__main__":
    main()
