"""Run by the oracle's interpreter: transformers' zero-shot pipeline on a folder that we wrote.

`asked.json` has the texts and the calls; `answered.json` gets what the pipeline says.
"""

import json
import sys
from pathlib import Path

from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers import ZeroShotClassificationPipeline as Pipeline

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    asked = json.loads((folder / "asked.json").read_text())
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model").eval()
    words = AutoTokenizer.from_pretrained(folder / "model")
    pipeline = Pipeline(model=model, tokenizer=words, framework="pt")
    found = [[pipeline(text, **call) for text in asked["texts"]] for call in asked["calls"]]
    (folder / "answered.json").write_text(json.dumps(found))
