"""The paper's path on miniature corpora: prepare, label, train, evaluate, print the table.

Corpora have their true layouts; between them and the table are the documented commands alone.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from lhotse import CutSet

from omnirouter.cli import main
from omnirouter.config import PRETRAINED_DIR
from omnirouter.corpora.registry import CORPORA
from omnirouter.evaluate.published import TABLES, find_set
from omnirouter.metrics.wer import error_rate
from omnirouter.text import Tokenizer, train_tokenizer

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = sorted(REPOSITORY.glob("recipes/**/*.yaml"))
FOLDERS = {"libriheavy", "spikes", "speechcrawl"}
PAPER = [path for path in RECIPES if path.parent.name in FOLDERS]
SPLITS = ("train-clean-100", "train-clean-360", "train-other-500", "dev-clean", "dev-other")
TINY = (  # of a recipe what a processor does in a second
    "--model.dim 16 --model.ffn_dim 32 --model.num_layers 2 "
    "--model.num_heads 2 --model.vocab_size 30 --model.num_experts 2 "
    "--steps 1 --log_every 1 --optim.warmup_steps 1 "
    "--optim.cosine_steps 1 --data.batch_hours 0.0005 --data.device_seconds 4 "
    "--data.workers 0 --device cpu --precision fp32 "
    "--augment.masks_from_step 0 --tokenizer.path tokenizer.model --tokenizer.texts [] "
)


def load(name: str) -> ModuleType:
    """A module of the unit tests; pytest imports tests without their folder on the path."""
    path = REPOSITORY / "tests" / "unit" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny(recipe: Path, *but: str) -> list[str]:
    """The options of `TINY` for a recipe, whose step is told in hours or in seconds."""
    options = TINY
    if "batch_seconds" in recipe.read_text(encoding="utf-8"):
        options = options.replace("--data.batch_hours 0.0005", "--data.batch_seconds 1.8")
    for part in but:
        options = options.replace(part, "")
    return options.split()


def omnirouter(*arguments: str) -> None:
    """A command, which must succeed or say of some inputs that they cannot be used."""
    assert main(list(arguments)) in (0, 1), arguments


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder in which everything was prepared as recipes and documents say."""
    folder = tmp_path_factory.mktemp("path") / "work"
    folder.mkdir()
    before = Path.cwd()
    os.chdir(folder)
    try:
        trees = load("corpus_trees")
        for name, tree in trees.TREES.items():
            if name not in ("mini-librispeech", "musan", "rirs"):
                tree(Path("corpora", name))
        for split in (*SPLITS, "test-other"):
            trees.librispeech(Path("corpora/librispeech"), split)
        for subset in ("medium", "large"):
            trees.libriheavy(Path("corpora/libriheavy"), subset)
        trees.fisher(Path("corpora/fisher"), calls=3)
        for name in trees.TREES:
            if Path("corpora", name).is_dir():
                omnirouter("prepare", name, f"corpora/{name}", f"data/{name}")
        teacher = str(load("tiny_whisper").make_teacher(folder / "teacher"))
        omnirouter(
            "relabel", "data/librispeech", "data/librispeech-relabeled", "--teacher", teacher
        )
        recordings = REPOSITORY / "tests" / "e2e" / "speech"
        shutil.copytree(recordings, "recordings")
        loose = ["--min-rate", "0", "--max-rate", "999", "--max-compression", "999"]
        loose += ["--max-repeats", "999", "--max-no-speech", "1", "--min-log-prob", "-99"]
        label = ["pseudo-label", "recordings", "data/speechcrawl", "--teacher", teacher]
        omnirouter(*label, "--dev-files", "1", "--language", "any", *loose)
        # the bundled model's: real speech by hand, synthetic speech by the command
        for place in ("data/small-english", "../shared/speech"):
            shutil.copytree(recordings, place)
            for split in ("train", "dev"):
                shutil.copy(recordings / "speech.jsonl", f"{place}/{split}.jsonl")
        Path("sentences.txt").write_text("turn the kitchen light off\nwhat time is it\n")
        omnirouter(
            "prepare",
            "synthetic",
            "sentences.txt",
            "data/small-english/reading",
            "--hours",
            "0.002",
        )
        letters = [
            f"{word} {letter}" for word in ("the", "and") for letter in "abcdefghijklmnopqrstuvwxyz"
        ]
        train_tokenizer(letters, 30).save("tokenizer.model")
        yield folder
    finally:
        os.chdir(before)


@pytest.mark.parametrize("recipe", PAPER, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipes_name_what_commands_write(root: Path, recipe: Path) -> None:
    data = yaml.safe_load(recipe.read_text(encoding="utf-8"))["data"]
    missing = [path for path in data["train"] + data["dev"] if not (root / path).is_file()]
    assert not missing
    commands = "".join(line for line in recipe.read_text().splitlines() if line.startswith("#"))
    for path in data["train"] + data["dev"]:
        assert str(Path(path).parent) in commands, "the header says which command writes it"


def test_recipes_of_the_bundled_model_name_what_a_header_says_how_to_make() -> None:
    headers = " ".join(
        line
        for path in RECIPES
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("#")
    )
    for recipe in sorted({*RECIPES} - {*PAPER}):
        data = yaml.safe_load(recipe.read_text(encoding="utf-8"))["data"]
        parts = [data[key] for key in ("train", "dev")]
        for path in (p for part in parts for p in ([part] if isinstance(part, str) else part)):
            made = re.sub(r"/(?:train|dev)\.jsonl$", "", path)
            assert made in headers or path in headers or "shared" in path or "data/" in path


@pytest.mark.parametrize(
    "recipe",
    [
        "libriheavy/omni-559m",
        "spikes/omni-fisher",
        "spikes/omni-librispeech-relabeled",
        "speechcrawl/omni-246m",
        "small-english/start/omni",
    ],
)
def test_a_recipe_of_each_folder_trains_from_prepared_corpora(root: Path, recipe: str) -> None:
    out = f"runs/{recipe}"
    path = REPOSITORY / "recipes" / f"{recipe}.yaml"
    omnirouter("train", str(path), *tiny(path), "--out", out)
    assert (root / out / "best" / "config.json").is_file()


def test_every_folder_of_recipes_is_trained_from() -> None:
    folders = {path.name for path in REPOSITORY.glob("recipes/*") if path.is_dir()}
    assert folders == FOLDERS | {"small-english"}


def test_prepared_corpora_fill_the_paper_s_table_without_renaming(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = "runs/evaluated"
    recipe = str(REPOSITORY / "recipes" / "speechcrawl" / "omni-246m.yaml")
    omnirouter("train", recipe, *tiny(Path(recipe)), "--out", out)
    omnirouter("evaluate", f"{out}/best", "data", "--output", "r.json")
    scored = json.loads(Path("r.json").read_text())
    assert "skipped relabeled copies: librispeech-relabeled\n" in capsys.readouterr().err
    assert not [name for name in scored if "relabeled" in name]
    assert {"librispeech-test-clean", "librispeech-test-other"} <= set(scored)
    assert {"ami-test", "speechcrawl-dev", "wsj-nov92", "eval2000-callhome"} <= set(scored)
    assert not [name for name in scored if "train" in name or name.startswith("fisher")]
    assert "librispeech-dev-clean" not in scored
    capsys.readouterr()
    omnirouter("tables", "Omni=r.json", "--table", "1", "--json")
    table = json.loads(capsys.readouterr().out)
    ours = table["systems"]["Omni"]["ours"]
    assert set(ours) == {own.label for own in TABLES[1].sets}
    assert all(rate["wer"] is not None for rate in ours.values())


def test_text_as_people_write_it_goes_through_vocabulary_training_and_evaluation(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Libriheavy has capitals and punctuation, and a recipe can keep them."""
    cuts = "data/libriheavy/cuts_small.jsonl.gz"
    style = ["--casing", "keep", "--punctuation", "keep"]
    omnirouter("tokenizer", cuts, *style, "--vocab-size", "12", "--out", "written")
    recipe = str(REPOSITORY / "recipes" / "libriheavy" / "omni-559m.yaml")
    keep = ["--text.casing", "keep", "--text.punctuation", "keep", "--data.dev", f"[{cuts}]"]
    options = tiny(Path(recipe), "--tokenizer.path tokenizer.model")
    command = ["train", recipe, *options, *keep]
    omnirouter(*command, "--tokenizer.path", "written/tokenizer.model", "--out", "runs/written")
    omnirouter(*command, "--model.vocab_size", "12", "--out", "runs/own-pieces")
    for run in ("runs/written", "runs/own-pieces"):
        tokenizer = Tokenizer.load(f"{run}/best/tokenizer.model")
        assert tokenizer.decode(tokenizer.encode("The little girl.")) == "The little girl."
    capsys.readouterr()
    omnirouter("evaluate", "runs/written/best", cuts, "--punctuation", "report", "--json")
    [figures] = json.loads(capsys.readouterr().out).values()
    assert set(figures["written"]) == {"wer", "casing_errors", "precision", "recall"}
    lower = ["--tokenizer.path", "tokenizer.model", "--out", "runs/mixed"]
    assert main([*command, *lower]) == 2
    assert "make others with omnirouter tokenizer --casing keep" in capsys.readouterr().err


def test_rounds_of_self_training_with_a_checkpoint_of_ours(root: Path) -> None:
    """Each round labels with the model of the round before, and trains on what it heard."""
    recipe = str(REPOSITORY / "recipes" / "small-english" / "start" / "omni.yaml")
    options = tiny(Path(recipe), "--tokenizer.path tokenizer.model")
    rows = Path("recordings/speech.jsonl").read_text().splitlines()
    said = [json.loads(row)["text"] for row in rows]
    teacher = str(PRETRAINED_DIR)
    for number in (1, 2):
        labels = f"data/round-{number}"
        omnirouter("pseudo-label", "recordings", labels, "--teacher", teacher, "--dev-files", "0")
        cuts = f"{labels}/cuts_train.jsonl.gz"
        heard = [cut.supervisions[0].text for cut in CutSet.from_file(cuts)]
        assert error_rate([" ".join(said)], [" ".join(heard)], resamples=0).rate < 0.5
        data = ["--data.train", f"[{cuts}]", "--data.dev", f"[{cuts}]", "--optim.peak_lr", "1e-6"]
        data += ["--data.weights", "[]"]
        out = f"runs/round-{number}"
        omnirouter("train", recipe, *options, *data, "--init", teacher, "--out", out)
        teacher = f"{out}/best"


def test_what_prepare_writes_is_known_to_the_table_whatever_way_it_is_named(root: Path) -> None:
    tested = {(name, split) for name, corpus in CORPORA.items() for split in corpus.splits}
    for corpus, split in tested:
        assert (root / "data" / corpus / f"cuts_{split}.jsonl.gz").is_file()
        for name in (f"{corpus}-{split}", f"prepared/{corpus}/cuts_{split}"):
            assert find_set(TABLES[1], name), name


@pytest.mark.parametrize(
    "name", ["test_clean", "libriheavy-test_clean", "data/libriheavy/cuts_test_clean"]
)
def test_the_demo_s_and_libriheavy_s_sets_are_nobody_s_column(name: str) -> None:
    assert all(find_set(table, name) is None for table in TABLES.values())
    assert find_set(TABLES[1], "cuts_test-clean")
