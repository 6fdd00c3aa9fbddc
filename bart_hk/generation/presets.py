"""Options that papers and READMEs ask for, by name: `bart.sample(texts, **PRESETS["cnn"])`."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

# fairseq `examples/bart/README.summarization.md`, what the published ROUGE scores were made with.
PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "cnn": MappingProxyType(
            {"beam": 4, "lenpen": 2.0, "max_len_b": 140, "min_len": 55, "no_repeat_ngram_size": 3}
        ),
        "xsum": MappingProxyType(
            {"beam": 6, "lenpen": 1.0, "max_len_b": 60, "min_len": 10, "no_repeat_ngram_size": 3}
        ),
    }
)
