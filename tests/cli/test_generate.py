"""`bart-hk-generate` as a user meets it: inputs, outputs, errors, interruptions."""

import dataclasses
import functools
import gzip
import io
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import sacrebleu

import bart_hk
from bart_hk.cli import item_generator, unfinished
from bart_hk.cli.convert import convert
from bart_hk.cli.generate import _Job, main
from bart_hk.config import BARTConfig
from bart_hk.generation.options import GenerationOptions
from bart_hk.generation.presets import PRESETS
from bart_hk.hub import BARTHubInterface
from bart_hk.text import TextEncoder
from tests.parameters import random_params

CONFIG = BARTConfig(
    encoder_embed_dim=16,
    encoder_ffn_embed_dim=24,
    encoder_layers=1,
    encoder_attention_heads=2,
    decoder_ffn_embed_dim=24,
    decoder_layers=1,
    decoder_attention_heads=2,
    max_source_positions=32,
    max_target_positions=32,
)
TEXTS = ["Hello world!", "The cat sat on the mat.", "", "a b", " ".join(["long"] * 20), "Hello"]
SHORT = ["--beam", "2", "--max-len-b", "6"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, scale in (("one", 0.16), ("two", 0.2)):
        params = random_params(CONFIG, scale)
        BARTHubInterface(CONFIG, params, TextEncoder.gpt2()).save(folder / name)
    return folder / "one"


@pytest.fixture(scope="module")
def loaded(model):
    """Loads every model once, so that nothing is compiled twice."""
    return functools.cache(bart_hk.load)


@pytest.fixture
def run(model, loaded, tmp_path, monkeypatch, capsys):
    """`run("in.txt", "--beam", "2")`: (exit code, standard output, standard error)."""
    monkeypatch.setattr(item_generator, "load", loaded)
    monkeypatch.chdir(tmp_path)

    def run_command(*arguments: str, stdin: str | None = None):
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        try:
            code = main(["--path", str(model), *arguments])
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return code, out, err

    return run_command


@pytest.fixture
def texts(tmp_path) -> str:
    (tmp_path / "in.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    return "in.txt"


def succeeded(result) -> list[str]:
    code, out, err = result
    assert code == 0, err
    return out.splitlines()


# --- What is written ------------------------------------------------------------------------------


def test_lines_are_fairseqs(run, texts, model, loaded):
    lines = succeeded(run(texts, *SHORT, "--nbest", "2", "--print-alignment"))
    bart = loaded(str(model), data_name_or_path=".", dtype="float32")
    hypotheses = bart.generate(
        bart.encode(TEXTS), beam=2, max_len_b=6, nbest=2, print_alignment="hard"
    )
    expected = []
    for n, (text, found) in enumerate(zip(TEXTS, hypotheses, strict=True)):
        expected.append(f"S-{n}\t{text}")
        for h in found:
            score = float(np.float32(h["score"]) / np.float32(math.log(2)))
            inner = h["tokens"][1:-1]
            symbols = " ".join(bart.task.target_dictionary[int(t)] for t in inner)
            expected.append(f"H-{n}\t{score}\t{symbols}")
            expected.append(f"D-{n}\t{score}\t{bart.decode(h['tokens'])}")
            scores = " ".join(f"{x:.4f}" for x in h["positional_scores"] / np.float32(np.log(2)))
            expected.append(f"P-{n}\t{scores}")
            expected.append(f"A-{n}\t" + " ".join(f"{s}-{t}" for s, t in h["alignment"]))
    assert lines == expected
    assert sum(line.startswith("H-") for line in lines) == 2 * len(TEXTS)


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ("--penalty-alpha 0.6 --sampling-topk 3", {"penalty_alpha": 0.6, "sampling_topk": 3}),
        (
            "--beam 4 --diverse-beam-groups 2 --diverse-beam-strength 0.9 --nbest 2",
            {"beam": 4, "diverse_beam_groups": 2, "diverse_beam_strength": 0.9, "nbest": 2},
        ),
        (
            "--beam 3 --no-repeat-ngram-size 2 --repetition-penalty 1.3 --early-stopping never",
            {
                "beam": 3,
                "no_repeat_ngram_size": 2,
                "repetition_penalty": 1.3,
                "early_stopping": "never",
            },
        ),
        (
            "--sampling --sampling-topp 0.8 --temperature 1.5 --seed 5 --nbest 2",
            {"sampling": True, "sampling_topp": 0.8, "temperature": 1.5, "seed": 5, "beam": 2},
        ),
    ],
    ids=["contrastive", "groups", "beam", "samples"],
)
def test_flags_are_the_options_of_every_search(run, texts, model, loaded, flags, options):
    lines = succeeded(run(texts, *flags.split(), "--max-len-b", "7", "--format", "text"))
    bart = loaded(str(model), data_name_or_path=".", dtype="float32")
    rows = bart.encode(TEXTS)
    options = {"beam": 1, "nbest": options.get("beam", 1) if "seed" in options else 1} | options
    if "seed" in options:
        options["draw_numbers"] = range(len(rows))
    found = bart.generate(rows, max_len_b=7, **options)
    assert lines == [bart.decode(h["tokens"]) for row in found for h in row]
    plain = bart.generate(rows, beam=1, max_len_b=7)
    assert lines[0] != bart.decode(plain[0][0]["tokens"])


def test_json_holds_targets_constraints_and_alignments(run, tmp_path):
    line = {"source": "the cat", "target": "a cat", "constraints": [" mat", " sat"]}
    (tmp_path / "in.jsonl").write_text(json.dumps(line) + "\n" + json.dumps({"source": "a"}))
    arguments = ["in.jsonl", "--beam", "4", "--max-len-b", "8", "--format", "jsonl"]
    arguments += ["--metrics", "none"]
    for kind in ("hard", "soft"):
        lines = succeeded(run(*arguments, "--print-alignment", kind))
        first, second = (json.loads(line) for line in lines)
        assert (first["target"], first["constraints"]) == (line["target"], line["constraints"])
        assert "target" not in second and "constraints" not in second
        (best,) = first["hypotheses"]
        assert " mat" in best["text"] and " sat" in best["text"]
        alignment = np.array(best["alignment"])
        if kind == "hard":  # pairs of each token but </s>
            assert alignment.shape == (len(best["tokens"]) - 1, 2)
        else:
            assert alignment.shape[0] == len(best["tokens"])
            np.testing.assert_allclose(alignment.sum(1), 1, rtol=1e-5)


def test_soft_alignments_are_six_decimals(run, texts):
    lines = succeeded(run(texts, *SHORT, "--print-alignment", "soft"))
    (weights,) = [line.split("\t")[1] for line in lines if line.startswith("A-3\t")]
    (scores,) = [line.split("\t")[1] for line in lines if line.startswith("P-3\t")]
    rows = [row.split(",") for row in weights.split(" ")]
    assert len(rows) == len(scores.split(" "))
    assert all(len(w) == 8 for row in rows for w in row)
    assert all(sum(map(float, row)) == pytest.approx(1, abs=1e-4) for row in rows)


def test_json_and_text_say_the_same(run, texts):
    records = [json.loads(line) for line in succeeded(run(texts, *SHORT, "--format", "jsonl"))]
    assert [(r["id"], r["source"]) for r in records] == list(enumerate(TEXTS))
    lines = succeeded(run(texts, *SHORT, "--format", "text"))
    assert lines == [r["hypotheses"][0]["text"] for r in records]
    fairseq = succeeded(run(texts, *SHORT))
    assert [line.split("\t", 2)[2] for line in fairseq if line.startswith("D-")] == lines
    best = records[1]["hypotheses"][0]
    assert best["tokens"][0] == 0 and best["tokens"][-1] == 2
    assert np.mean(best["positional_scores"]) == pytest.approx(best["score"], rel=1e-5)
    assert len(succeeded(run(texts, *SHORT, "--format", "text", "--nbest", "2"))) == 12


def test_every_output_stays_on_its_line(run, tmp_path, model, loaded):
    """A model may generate line breaks, and JSON may bring them."""
    (tmp_path / "in.jsonl").write_text(json.dumps({"source": "one\ntwo\r\nthree"}) + "\n")
    newline = loaded(str(model), data_name_or_path=".", dtype="float32").encode("a\nb")[2:3]
    arguments = [*SHORT, "--forced-bos-token-id", str(int(newline[0]))]
    lines = succeeded(run("in.jsonl", *arguments))
    assert [line[:4] for line in lines] == ["S-0\t", "H-0\t", "D-0\t", "P-0\t"]
    assert lines[0] == "S-0\tone two three"
    (record,) = succeeded(run("in.jsonl", *arguments, "--format", "jsonl"))
    assert json.loads(record)["source"] == "one\ntwo\r\nthree"
    assert "\n" in json.loads(record)["hypotheses"][0]["text"]


def test_batches_and_windows_change_nothing_but_rounding(run, texts):
    def without_scores(lines):
        return [line.split("\t")[-1] for line in lines if not line.startswith("P-")]

    whole = without_scores(succeeded(run(texts, *SHORT)))
    for more in (["--buffer-size", "2"], ["--batch-size", "1"], ["--max-tokens", "8"]):
        assert without_scores(succeeded(run(texts, *SHORT, *more))) == whole


# --- What is read ---------------------------------------------------------------------------------


def test_standard_input_is_read_like_a_file(run, texts):
    expected = succeeded(run(texts, *SHORT))
    content = Path(texts).read_text()
    assert succeeded(run(*SHORT, stdin=content)) == expected
    assert succeeded(run("-", *SHORT, "--buffer-size", "1", stdin=content))[0] == expected[0]
    assert succeeded(run(*SHORT, "--format", "text", stdin="")) == []


def test_columns_bring_constraints_prefixes_and_references(run, tmp_path):
    (tmp_path / "c.txt").write_text("Hello\t cat\t dog\na b\n")
    lines = succeeded(run("c.txt", "--constraints", "ordered", "--max-len-b", "8", "--beam", "4"))
    assert lines[1:3] == ["C-0\t cat", "C-0\t dog"]
    text = next(line for line in lines if line.startswith("D-0"))
    assert text.index(" cat") < text.index(" dog")
    (tmp_path / "p.txt").write_text("Hello\t the cat\na b\t\n")
    lines = succeeded(run("p.txt", "--columns", "source,prefix", *SHORT, "--format", "text"))
    assert lines[0].startswith(" the cat") and not lines[1].startswith(" the")
    both = succeeded(run("p.txt", *SHORT, "--format", "text", "--prefix", "no"))
    assert all(line.startswith("no") for line in both)
    (tmp_path / "in.jsonl").write_text(
        '{"source": "Hello", "constraints": [" cat"], "prefix": " the"}\n{"source": "a b"}\n'
    )
    lines = succeeded(run("in.jsonl", "--max-len-b", "8", "--format", "text"))
    assert lines[0].startswith(" the") and " cat" in lines[0]


def test_a_tsv_has_references_whose_beginning_can_be_forced(run, tmp_path):
    (tmp_path / "in.tsv").write_text("Hello\tone two three\na b\tfour five six\n")
    lines = succeeded(run("in.tsv", *SHORT, "--prefix-size", "2"))
    assert [line for line in lines if line[0] == "T"] == [
        "T-0\tone two three",
        "T-1\tfour five six",
    ]
    texts = [line.split("\t")[2] for line in lines if line[0] == "D"]
    assert texts[0].startswith("one two") and texts[1].startswith("four five")


def test_gz_is_read_and_windows_line_ends_too(run, tmp_path, texts):
    expected = succeeded(run(texts, *SHORT))
    content = "".join(f"{text}\r\n" for text in TEXTS).encode()
    (tmp_path / "in.txt.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + content))
    assert succeeded(run("in.txt.gz", *SHORT)) == expected


def test_a_damaged_gz_takes_one_line(run, tmp_path):
    whole = gzip.compress(random.Random(1).randbytes(4000).hex().encode() + b"\n")
    (tmp_path / "in.txt.gz").write_bytes(whole[:2000])
    code, _, err = run("in.txt.gz", *SHORT)
    assert code == 2 and "in.txt.gz is damaged at line 1: " in err and err.count("\n") == 1


def test_a_named_pipe_is_read_once(run, tmp_path, texts):
    expected = succeeded(run(texts, *SHORT))
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(
        target=lambda: (tmp_path / "pipe").write_bytes(Path(texts).read_bytes())
    )
    writer.start()
    assert succeeded(run("pipe", *SHORT)) == expected
    writer.join()
    os.mkfifo(tmp_path / "references")
    code, _, err = run(texts, "--references", "references")
    assert code == 2 and "--references references is no regular file; write it to one" in err


def test_texts_that_are_too_long_are_cut_and_counted(run, tmp_path, caplog):
    (tmp_path / "in.txt").write_text("short\n" + "word " * 100 + "\n" + "word " * 30 + "\n")
    succeeded(run("in.txt", *SHORT))
    assert "1 inputs were cut to the 32 tokens that are read, input 1 first" in caplog.text


# --- Options --------------------------------------------------------------------------------------


def test_every_option_is_a_flag():
    values = {"diverse_beam_groups": "5", "early_stopping": "never", "constraints": "unordered"}
    values |= {"bad_words_ids": "5,6", "sequence_bias": "5,6=-1.5"}
    alone = {"constraints", "print_alignment"}
    switched = {"sampling", "beam_sampling", "unnormalized", "match_source_len"}
    switched |= {"renormalize_logits"}
    for field in dataclasses.fields(GenerationOptions):
        flag = f"--{field.name.replace('_', '-')}"
        more = {
            "sampling_topk": ["--beam-sampling"],
            **dict.fromkeys(
                ("sampling_topp", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"),
                ["--beam-sampling"],
            ),
            "exponential_decay_length_penalty": ["1.5"],
            "diverse_beam_strength": ["--diverse-beam-groups", "5"],
            "diversity_discount": ["--diverse-beam-groups", "5"],
            "penalty_alpha": ["--sampling-topk", "4"],
            "sampling": ["--nbest", "3"],
        }.get(field.name, [])
        value = values.get(field.name, "0.5" if field.type in ("float", float) else "1")
        given = [flag] if field.name in switched | alone else [flag, value]
        job = _Job.parse(["--path", "x", *given, *more])
        if field.name == "nbest":
            assert job.arguments.nbest == 1
        else:
            found = job.options[field.name]
            assert (
                found != field.default
                or field.name in ("seed", "min_len", "lm_weight")
                or (field.name in ("diversity_candidate_multiple", "diverse_beam_strength"))
            )
    assert _Job.parse(["--path", "x", "--constraints"]).options["constraints"] == "ordered"
    assert _Job.parse(["--path", "x", "--suppress-tokens", "5", "6"]).options[
        "suppress_tokens"
    ] == [5, 6]
    given = "--bad-words-ids 5,6 7 --sequence-bias 5,6=-1.5 7=2 --exponential-decay-length-penalty"
    options = _Job.parse(["--path", "x", *given.split(), "20", "1.5"]).options
    assert options == {
        "bad_words_ids": [[5, 6], [7]],
        "sequence_bias": [([5, 6], -1.5), ([7], 2.0)],
        "exponential_decay_length_penalty": [20, 1.5],
    }


def test_presets_are_fairseqs_and_flags_win(run, texts):
    for name, options in PRESETS.items():
        assert _Job.parse(["--path", "x", "--preset", name]).options == dict(options)
    job = _Job.parse(["--path", "x", "--preset", "cnn", "--beam", "2", "--min-len", "3"])
    assert job.options == {**PRESETS["cnn"], "beam": 2, "min_len": 3}
    # fairseq's examples/bart/summarize.py
    assert PRESETS["xsum"] == {
        "beam": 6,
        "lenpen": 1.0,
        "max_len_b": 60,
        "min_len": 10,
        "no_repeat_ngram_size": 3,
    }
    lines = succeeded(run(texts, "--preset", "xsum", "--max-len-b", "12", "--format", "jsonl"))
    assert all(len(json.loads(line)["hypotheses"][0]["tokens"]) >= 11 for line in lines)


def test_samples_depend_on_seed_and_line_but_not_on_the_batch(run, tmp_path):
    (tmp_path / "in.txt").write_text("Hello\na b\nHello\n")
    arguments = ["in.txt", "--sampling", "--max-len-b", "8", "--format", "text"]
    whole = succeeded(run(*arguments))
    assert whole[0] != whole[2]
    for more in (["--buffer-size", "1"], ["--batch-size", "1"]):
        assert succeeded(run(*arguments, *more)) == whole
    assert succeeded(run(*arguments, "--seed", "2")) != whole
    assert len(succeeded(run(*arguments, "--nbest", "3"))) == 9


def test_paths_with_a_colon_are_an_ensemble(run, model, texts, tmp_path):
    def scores(path):
        lines = succeeded(run(texts, *SHORT, "--path", path))
        return [line for line in lines if line[0] == "P"]

    paths = []
    for name in ("one", "two"):
        convert(str(model.with_name(name)), tmp_path / name, "fairseq")
        paths.append(str(tmp_path / name / "model.pt"))
    one, two, both = scores(paths[0]), scores(paths[1]), scores(":".join(paths))
    assert one == scores(str(model))
    assert both not in (one, two)


def test_the_models_own_options_are_defaults(run, model, texts, loaded, monkeypatch):
    bart = loaded(str(model), data_name_or_path=".", dtype="float32")
    monkeypatch.setitem(bart.extras, "generation", {"beam": 3, "max_len_b": 4, "min_len": 4})
    lines = succeeded(run(texts, "--references", texts, "--metrics", "bleu"))
    assert all(len(line.split()) == 6 for line in lines if line[0] == "P")
    assert lines[-1].startswith("Generate in with beam=3: ")
    assert succeeded(run(texts, "--beam", "3", "--references", texts, "--metrics", "bleu")) == lines
    assert succeeded(run(texts, "--max-len-b", "5", "--min-len", "5"))[1] != lines[1]


def test_only_allowed_outputs_come_out(run, texts, tmp_path):
    (tmp_path / "outputs").write_text("yes\nno\nnot at all\n")
    lines = succeeded(run(texts, "--allowed-outputs", "outputs", "--format", "text", "--beam", "3"))
    assert set(lines) <= {"yes", "no", "not at all"} and len(lines) == len(TEXTS)


def test_a_language_model_is_a_function_by_name(run, texts, tmp_path):
    (tmp_path / "my_lm.py").write_text(
        "import jax, jax.numpy as jnp\n"
        "def cats(tokens, length):\n"
        "    return jax.nn.log_softmax(jnp.zeros((len(tokens), 50265)).at[:, 4758].set(30.0))\n"
        "def more(tokens, length, scores):\n"
        "    return scores.at[:, 4758].add(30.0)\n"
    )
    lines = succeeded(run(texts, *SHORT, "--lm", "my_lm:cats", "--format", "text"))
    assert all(" cat cat cat" in line for line in lines)
    more = ["--logits-processor", "my_lm:more", "--stop-strings", "cat ca", "--format", "text"]
    assert set(succeeded(run(texts, *SHORT, *more))) == {" cat cat"}


def test_unknown_symbols_are_replaced_by_what_they_are_aligned_with(run, texts, tmp_path):
    """The model is made to write <unk> at every step."""
    arguments = [texts, *SHORT, "--unkpen", "-1000", "--format", "text"]
    plain = succeeded(run(*arguments))
    assert all("<unk><unk>" in line for line in plain)
    replaced = succeeded(run(*arguments, "--replace-unk"))
    assert not any("<unk>" in line for line in replaced)
    words = [piece for piece in (" cat", " mat", "The", " sat", " on", ".") if piece in replaced[1]]
    assert words
    (tmp_path / "words").write_text(f"{words[0].strip()} Wort 0.5\n")
    translated = succeeded(run(*arguments, "--replace-unk", "words"))
    assert translated[1] == replaced[1].replace(words[0].strip(), "Wort")
    assert not any(line.startswith("A-") for line in succeeded(run(*arguments, "--replace-unk")))


# --- References -----------------------------------------------------------------------------------


def test_references_give_bleu_and_rouge(run, texts, tmp_path):
    hypotheses = succeeded(run(texts, *SHORT, "--format", "text"))
    references = [f"{text} indeed" for text in hypotheses]
    (tmp_path / "ref.txt").write_text("".join(f"{text}\n" for text in references))
    lines = succeeded(run(texts, *SHORT, "--references", "ref.txt", "--buffer-size", "4"))
    score = sacrebleu.corpus_bleu(hypotheses, [[r.strip() for r in references]])
    assert lines[-2] == f"Generate in with beam=2: {score.format()}"
    assert lines[-1].startswith("Generate in with beam=2: ROUGE-1 = ")
    assert 20 < score.score < 100
    code, out, err = run(
        texts, *SHORT, "--references", "ref.txt", "--format", "text", "--metrics", "bleu"
    )
    assert code == 0 and out.splitlines() == hypotheses
    assert err.splitlines()[-1] == lines[-2] and "ROUGE" not in err
    alone = succeeded(run(texts, *SHORT, "--references", "ref.txt", "--metrics", "none"))
    assert not any(line.startswith("Generate") for line in alone)


def test_missing_packages_are_missed_before_the_work(run, texts, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setattr(item_generator, "load", None)
    code, _, err = run(texts, "--references", texts)
    assert code == 2 and "BLEU needs the package sacrebleu" in err and err.count("\n") == 1


# --- Interruptions --------------------------------------------------------------------------------


class Killed(BaseException):
    """What a kill would do, at a moment of our choice."""


STEPS = [("_flush", unfinished._flush), ("_replace", unfinished._replace)]


def test_killed_at_any_moment_the_same_command_goes_on(run, texts, tmp_path, monkeypatch):
    """Before and after every write, wherever a window or a batch stands."""
    command = [texts, *SHORT, "--buffer-size", "3", "--batch-size", "2"]
    command += ["--references", texts, "--output", "out"]
    assert succeeded(run(*command)) == []
    expected = Path("out").read_bytes()
    assert not Path("out.unfinished").exists()
    moments = 0
    for moment in range(100):
        Path("out").unlink(missing_ok=True)
        writes = iter(range(1000))

        def dying(*arguments, step, moment=moment, writes=writes):
            n = next(writes)
            if n == moment // 3 and moment % 3 == 0:
                raise Killed
            if n == moment // 3 and moment % 3 == 1 and hasattr(arguments[0], "truncate"):
                file = arguments[0]  # half of what was written reached the disk
                file.flush()
                file.truncate(max(0, file.tell() - 7))
                raise Killed
            step(*arguments)
            if n == moment // 3 and moment % 3 == 2:
                raise Killed

        for name, step in STEPS:
            monkeypatch.setattr(unfinished, name, functools.partial(dying, step=step))
        try:
            succeeded(run(*command))
            finished = True
        except Killed:
            finished = False
        for name, step in STEPS:
            monkeypatch.setattr(unfinished, name, step)
        if not finished:
            moments += 1
            assert not Path("out").exists()
            succeeded(run(*command))
        assert Path("out").read_bytes() == expected, moment
        assert not Path("out.unfinished").exists()
        if finished and moment % 3 == 0:
            break
    assert moments > 15


def test_a_longer_file_takes_no_more_memory(run, tmp_path):
    """What is read and written is held a window at a time."""

    def peak(lines: int) -> int:
        """Bytes of Python's objects at most, beyond those before."""
        name = f"{lines}.txt"
        (tmp_path / name).write_text("".join(f"line {n % 7} {'w ' * 20}\n" for n in range(lines)))
        tracemalloc.start()
        try:
            succeeded(run(name, *SHORT, "--buffer-size", "32", "--output", f"{name}.out"))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(32)  # compiles
    few, many = peak(96), peak(960)
    written = (tmp_path / "960.txt.out").stat().st_size
    assert written > 200_000
    assert many - few < written / 4, (few, many, written)


def test_finished_batches_are_not_generated_again(run, texts, monkeypatch):
    command = [texts, *SHORT, "--batch-size", "1", "--output", "out"]
    texts_of = item_generator.ItemGenerator.texts
    done = []

    def dying(self, items, rows):
        done.append([item.number for item in items])
        if len(done) == 4:
            raise Killed
        return texts_of(self, items, rows)

    monkeypatch.setattr(item_generator.ItemGenerator, "texts", dying)
    with pytest.raises(Killed):
        run(*command)
    succeeded(run(*command))
    assert len(done) == len(TEXTS) + 1  # only the batch that was cut short came twice


def test_going_on_with_something_else_is_refused(run, texts, tmp_path, monkeypatch, model):
    command = [texts, *SHORT, "--output", "out"]
    monkeypatch.setattr(unfinished.Unfinished, "finish", lambda *a: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        run(*command)
    monkeypatch.undo()
    monkeypatch.setattr(item_generator, "load", functools.cache(bart_hk.load))
    monkeypatch.chdir(tmp_path)
    for more, thing in (
        (["--lenpen", "2"], "another command: lenpen=null, and not 2.0"),
        (["--beam", "3"], "another command: beam=2, and not 3"),
        (["--format", "text"], 'another command: format="fairseq", and not "text"'),
        (["--path", str(model.with_name("two"))], "another model: digest="),
        (["--references", texts], "another references: lines=null, and not 6"),
    ):
        code, _, err = run(*command, *more)
        assert code == 2 and thing in err and "or remove the folder" in err
        assert err.count("\n") == 1
    content = Path(texts).read_text()
    Path(texts).write_text(content.replace("cat", "dog"))
    code, _, err = run(*command)
    assert code == 2 and "was begun with another input: sha256=" in err
    Path(texts).write_text(content)
    (tmp_path / "outputs").write_text("yes\n")
    code, _, err = run(*command, "--allowed-outputs", "outputs")
    assert code == 2 and "was begun with another allowed_outputs: " in err
    succeeded(run(*command))
    code, _, err = run(*command)
    assert code == 2 and "out is there already; name another file, or remove it" in err


def test_two_processes_do_not_write_one_output(run, texts):
    held = unfinished.Unfinished(Path("out"), {})
    code, _, err = run(texts, *SHORT, "--output", "out")
    held.close()
    assert code == 2 and "another process is writing out" in err


def test_a_real_kill(model, tmp_path):
    """The console script, killed again and again until it is through."""
    (tmp_path / "in.txt").write_text("".join(f"text number {i}\n" for i in range(96)))
    script = Path(sys.executable).parent / "bart-hk-generate"
    command = [script, "--path", model, "in.txt", *SHORT, "--batch-size", "4", "--quiet"]
    command += ["--output", "out", "--buffer-size", "32"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    kills = 0
    while not (tmp_path / "out").exists():
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE)
        journal = tmp_path / "out.unfinished" / "journal.jsonl"
        before = journal.stat().st_mtime_ns if journal.exists() else 0
        while process.poll() is None:
            # Let the first three come as far as a few batches.
            if kills < 3 and journal.exists() and journal.stat().st_mtime_ns != before:
                time.sleep(0.02)
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.002)
        process.wait()
        stderr = process.stderr.read().decode()
        process.stderr.close()
        assert process.returncode in (0, -signal.SIGKILL), stderr
    lines = (tmp_path / "out").read_text().splitlines()
    assert [line for line in lines if line[0] == "S"] == [
        f"S-{i}\ttext number {i}" for i in range(96)
    ]
    assert len(lines) == 4 * 96
    assert kills == 3


def test_ctrl_c_is_no_traceback(run, texts, monkeypatch):
    def interrupted(self, items, rows):
        raise KeyboardInterrupt

    monkeypatch.setattr(item_generator.ItemGenerator, "texts", interrupted)
    code, _, err = run(texts, *SHORT, "--output", "out")
    assert code == 130 and "interrupted; with --output the same command goes on" in err


def test_a_full_disk_is_not_the_commands_fault(run, texts, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(unfinished, "_flush", full)
    code, _, err = run(texts, *SHORT, "--output", "out")
    assert code == 1 and err.endswith("error: the output: No space left on device\n")
    monkeypatch.undo()


def test_output_of_standard_input_appears_whole(run, tmp_path):
    assert succeeded(run(*SHORT, "--output", "out", "--format", "text", stdin="Hello\n")) == []
    assert len(Path("out").read_text().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# --- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.txt"], "nowhere.txt does not exist"),
        (["in.txt", "--path", "nowhere"], "no model 'nowhere'"),
        (["in.txt", "--num-beams", "4"], "no option --num-beams, here it is beam"),
        (["in.txt", "--beem", "4"], "no option --beem, did you mean --beam?"),
        (["in.txt", "--beam", "x"], "argument --beam: invalid int value: 'x'"),
        (["in.txt", "--beam", "0"], "beam must be at least 1, not 0"),
        (["in.txt", "--nbest", "9"], "nbest=9 is more than the beam=5"),
        (["in.txt", "--nbest", "0"], "--nbest must be at least 1, not 0"),
        (["in.txt", "--sampling", "--beam", "4"], "give both the same number"),
        (["in.txt", "--sampling", "--sampling-topp", "1.5"], "sampling_topp must be greater than"),
        (["in.txt", "--sampling", "--diverse-beam-groups", "1"], "exclude each other"),
        (["in.txt", "--diverse-beam-groups", "2"], "cannot be divided into 2 groups"),
        (["in.txt", "--early-stopping", "maybe"], "'maybe' is not one of true, false, never"),
        (["in.txt", "--batch-size", "0"], "--batch-size must be at least 1, not 0"),
        (["in.txt", "--columns", "target"], "--columns must name the source"),
        (["in.txt", "--columns", "source,foo"], "there is no column 'foo'; choose from source"),
        (["in.txt", "--columns", "source,source"], "'source' is there twice"),
        (["in.txt", "--columns", "constraints,source"], "constraints come last"),
        (["in.txt", "--columns", "source,target"], "in.txt, line 1: 1 columns between tabs, not 2"),
        (["in.txt", "--references", "two.txt"], "in.txt, line 3: the references end before it"),
        (["two.txt", "--references", "in.txt"], "in.txt, line 3: more references than inputs"),
        (["in.txt", "--references", "nowhere"], "nowhere does not exist"),
        (["in.txt", "--prefix-size", "2"], "reference, and input 2 has none"),
        (["in.txt", "--prefix-size", "2", "--prefix", "a"], "both say how outputs begin"),
        (
            ["in.txt", "--prefix-size", "2", "--columns", "source,target,prefix"],
            "--prefix-size and the prefix of --columns both say how outputs begin",
        ),
        (["p.jsonl", "--prefix-size", "2"], "and the prefix of input 0 both say how its output"),
        (["typo.jsonl"], 'line 1: there is no key "constraint"; did you mean "constraints"?'),
        (["in.txt", "--bad-words-ids", "a"], "argument --bad-words-ids: invalid list of ids value"),
        (["in.txt", "--logits-processor", "nope:f"], "--logits-processor nope:f: No module named"),
        (["in.txt", "--lm", "nope:f"], "--lm nope:f: No module named 'nope'"),
        (["in.txt", "--lm-weight", "2"], "lm_weight=2.0 has no meaning without an lm"),
        (["in.txt", "--replace-unk", "nowhere"], "alignment dictionary nowhere does not exist"),
        (["in.txt", "--replace-unk", "--print-alignment", "soft"], "needs hard alignments"),
        (["in.txt", "--print-alignment", "--format", "text"], "no meaning with --format text"),
        (["in.txt", "--metrics", "bleu"], "--metrics bleu compare with references, and there are"),
        (
            ["in.txt", "--columns", "source,target", "--references", "two.txt"],
            "--references two.txt and the column target of the input both say",
        ),
        (["p.jsonl", "--references", "two.txt"], 'p.jsonl, line 1: its "target" and the referen'),
        (["in.txt", "--preset", "model"], "--preset model: its folder says nothing of searches"),
        (["in.txt", "--seed", "3"], "seed=3 has no meaning in beam search"),
        (["in.txt", "--device", "tpu"], "device='tpu' is not there"),
        (["in.txt", "--suppress-tokens", "99999"], "id 99999, outside the vocabulary of 50265"),
        (["in.txt", "--forced-bos-token-id", "99999"], "id 99999, outside the vocabulary"),
        (
            ["c.txt", "--constraints", "--max-len-b", "2"],
            "the constraints of input 2 have 4 tokens",
        ),
        (["latin.txt"], "latin.txt, line 2: not UTF-8 (byte 0xe9 at column 4)"),
        (["bad.jsonl"], "bad.jsonl, line 1: not JSON"),
        (["no.jsonl"], 'no.jsonl, line 1: not a JSON object with a text as "source"'),
        (["list.jsonl"], 'list.jsonl, line 1: "constraints" is not a list of texts'),
        (["c.txt", "--constraints", "--columns", "source,target"], "--columns names none; end it"),
        (["in.txt", "--allowed-outputs", "empty"], "--allowed-outputs empty holds nothing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_commands_take_one_line(run, texts, tmp_path, arguments, message):
    (tmp_path / "two.txt").write_text("a\nb\n")
    (tmp_path / "c.txt").write_text("a\nb\nc\t one two three four\n")
    (tmp_path / "latin.txt").write_bytes(b"ok\ncaf\xe9\n")
    (tmp_path / "bad.jsonl").write_text("{\n")
    (tmp_path / "no.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "list.jsonl").write_text('{"source": "a", "constraints": "b"}\n')
    (tmp_path / "p.jsonl").write_text('{"source": "a", "target": "b", "prefix": "c"}\n')
    (tmp_path / "typo.jsonl").write_text('{"source": "a", "constraint": ["b"]}\n')
    (tmp_path / "empty").write_text("\n")
    more = [] if "--max-len-b" in arguments else ["--max-len-b", "4"]
    code, _, err = run(*arguments, *more, "--quiet")
    assert code == 2
    assert message in err and err.startswith("bart-hk-generate: error: ")
    assert err.count("\n") == 1


def test_what_changes_nothing_is_said_once(run, tmp_path, caplog):
    lines = [{"source": "a", "id": 7}, {"source": "b", "id": 8, "title": "B"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(succeeded(run("in.jsonl", *SHORT, "--constraints", "--format", "text"))) == 2
    said = [record.getMessage() for record in caplog.records if "bart-hk" in record.name]
    known = "is not read; those are source, target, prefix, constraints"
    assert said == [
        f'input 0: the key "id" {known}',
        f'input 1: the key "title" {known}',
        "--constraints ordered changed nothing: no input has phrases",
    ]
    caplog.clear()
    run("in.jsonl", *SHORT, "--constraints", "--format", "text", "--quiet")
    assert not caplog.records


def test_inputs_without_an_output_are_named(run, tmp_path, caplog):
    (tmp_path / "in.txt").write_text("one\ntwo\n")
    (tmp_path / "outputs").write_text(" the the the\n")
    options = ["--allowed-outputs", "outputs", "--no-repeat-ngram-size", "1"]
    lines = succeeded(run("in.txt", *options, "--batch-size", "1", "--format", "text"))
    assert lines == ["", ""]
    said = [record.getMessage() for record in caplog.records if "bart-hk" in record.name]
    assert len(said) == 2
    for number, message in enumerate(said):
        assert message.startswith(f"the search found no hypothesis for input {number}: under")


def test_the_path_is_required(capsys):
    with pytest.raises(SystemExit) as end:
        main(["in.txt"])
    assert end.value.code == 2
    assert "required: --path" in capsys.readouterr().err
