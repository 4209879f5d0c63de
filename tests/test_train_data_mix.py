"""Shards and the mix: a pure function of the step, whole documents, shares by tokens, no loss."""

import hashlib
import json
import resource
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from train_data_parts import Sums, recipe_with, tokenizer_folder, writer_of

from mull.errors import RecipeError, TrainError
from mull.tasks.task import split_of
from mull.train.batch import Batch, Example
from mull.train.data.mix import DataMix, Source
from mull.train.data.shards import Shard, find_shard, make_shard
from mull.train.data.sources import sample_texts
from mull.train.data.stage import StageData
from mull.train.data.writer import TraceWriter
from mull.train.recipe import Recipe
from mull.train.recipe_stages import LearnStage

DOCUMENTS = st.lists(st.integers(2, 90), min_size=1, max_size=40)


def shard_of(
    folder: Path, lengths: list[int], *, key: str = "k", vocabulary: int = 30_000
) -> Shard:
    """Document n is n + 1 again and again, its place in the document in the higher digits."""
    documents = [
        Example([(n + 1) + 100 * i for i in range(length)], [i % 3 > 0 for i in range(length)])
        for n, length in enumerate(lengths)
    ]
    return make_shard(folder, key, documents, vocabulary, counts={})


def drawn(mix: DataMix, steps: int) -> list[Example]:
    return [example for step in range(steps) for example in mix.batch(step)]


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> TraceWriter:
    return writer_of(tokenizer_folder(tmp_path_factory.mktemp("mix") / "tokenizer"))


def stage_data(recipe: Recipe, writer: TraceWriter, folder: Path, **options: object) -> StageData:
    tasks = {"sums": Sums(most=options.pop("most", None))}  # type: ignore[arg-type]
    return StageData(recipe, writer, tasks, folder / "shards", **options)  # type: ignore[arg-type]


def only_stage(recipe: Recipe) -> LearnStage:
    (stage,) = recipe.stages
    assert isinstance(stage, LearnStage)
    return stage


def chat_file(folder: Path, count: int, name: str = "chat.jsonl") -> Path:
    turns = [
        [{"role": "user", "content": f"{n} + 1?"}, {"role": "assistant", "content": str(n + 1)}]
        for n in range(count)
    ]
    (folder / name).write_text("\n".join(json.dumps({"messages": each}) for each in turns))
    return folder / name


@pytest.mark.parametrize("vocabulary", [30_000, 130_000])
def test_a_shard_gives_back_what_was_put_in(tmp_path: Path, vocabulary: int) -> None:
    top = vocabulary - 1
    documents = [Example([0, top, 5], [False, True, False]), Example([top, 1], [False, True])]
    shard = make_shard(tmp_path, "k", documents, vocabulary, counts={"rows": 1})
    assert shard.documents == 2
    assert shard.ends_N.tolist() == [3, 5]
    assert shard.read(0, 3, all_learnt=False) == documents[0]
    assert shard.read(3, 5, all_learnt=False) == documents[1]
    assert shard.read(0, 3, all_learnt=True).learn == [False, True, True]
    assert shard.counts == {"rows": 1}
    assert isinstance(shard._ids, np.memmap)


def test_a_shard_that_is_there_is_used_again_and_a_damaged_one_made_anew(tmp_path: Path) -> None:
    shard = shard_of(tmp_path, [5, 6])
    again = make_shard(tmp_path, "k", iter(()), 30_000, counts={})
    assert again.documents == 2
    whole = shard.path.read_bytes()
    for damaged in (whole[:-1], whole[:100], b"", b"x" * len(whole)):
        shard.path.write_bytes(damaged)
        assert find_shard(tmp_path, "k") is None
        assert shard_of(tmp_path, [5, 6]).path.read_bytes() == whole
    assert [path.name for path in tmp_path.iterdir()] == ["k.tokens"]


def test_a_shard_that_cannot_be_finished_leaves_nothing(tmp_path: Path) -> None:
    def documents():
        yield Example([1, 2], [False, True])
        raise RecipeError("line 2 is bad")

    with pytest.raises(RecipeError, match="line 2"):
        make_shard(tmp_path, "k", documents(), 100, counts={})
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(TrainError, match="could not be written"):
        shard_of(tmp_path / "file", [5])


def test_a_full_disk_is_said_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(TrainError, match=r"k\.tokens: could not be written: File too large"):
            shard_of(tmp_path, [200] * 300)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_shards_end_before_the_bound(tmp_path: Path) -> None:
    documents = (Example([1, 2, 3], [False, True, True]) for _ in range(10**9))
    shard = make_shard(tmp_path, "k", documents, 100, counts={}, most_tokens=1000)
    assert (shard.tokens, shard.is_complete) == (999, False)
    assert shard_of(tmp_path, [5], key="other").is_complete


@hypothesis_settings(deadline=None, derandomize=True, max_examples=50)
@given(lengths=DOCUMENTS, batch=st.integers(90, 400), seed=st.integers(0, 9))
def test_an_epoch_holds_every_document_once_and_whole(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], batch: int, seed: int
) -> None:
    shard = shard_of(tmp_path_factory.mktemp("epoch"), lengths)
    sources = [Source("s", shard)]
    mix = DataMix(sources, seed=seed, batch_tokens=batch, max_length=90, learn_all=False)
    total = sum(lengths)
    # So many steps are a whole number of epochs.
    counts = Counter(example.ids[0] for example in drawn(mix, total))
    assert counts == {n + 1: batch for n in range(len(lengths))}
    batches = [mix.batch(step) for step in range(20)]
    assert all(batches)
    for number, examples in enumerate(batches):
        sizes = [len(example.ids) for example in examples]
        assert abs(sum(sizes) - batch) <= 90, number
        assert all(len(e.ids) == lengths[e.ids[0] - 1] for e in examples)


@hypothesis_settings(deadline=None, derandomize=True, max_examples=50)
@given(lengths=DOCUMENTS, most=st.integers(2, 40))
def test_cutting_loses_no_token_and_leaves_no_crumbs(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], most: int
) -> None:
    shard = shard_of(tmp_path_factory.mktemp("cut"), lengths)
    mix = DataMix([Source("s", shard)], seed=1, batch_tokens=most, max_length=most, learn_all=True)
    examples = drawn(mix, sum(lengths))
    tokens = Counter(token for example in examples for token in example.ids)
    assert set(tokens.values()) == {most}
    assert len(tokens) == sum(lengths)
    assert all(len(e.ids) <= most for e in examples)
    assert mix.reports[0].cut == sum(length > most for length in lengths)
    for length in lengths:
        pieces = -(-length // most)
        assert length // pieces >= min(length, most) // 2


def test_documents_that_mean_nothing_in_pieces_are_counted_and_left_out(tmp_path: Path) -> None:
    source = Source("chats", shard_of(tmp_path, [10, 50, 20]), is_whole=True)
    mix = DataMix([source], seed=1, batch_tokens=100, max_length=30, learn_all=False)
    assert {len(example.ids) for example in drawn(mix, 5)} == {10, 20}
    report = mix.reports[0]
    assert (report.documents, report.pieces, report.too_long, report.cut) == (3, 2, 1, 0)
    with pytest.raises(RecipeError, match="chats: all 3 documents are longer than max_length 5"):
        DataMix([source], seed=1, batch_tokens=100, max_length=5, learn_all=False)


def test_sources_share_the_tokens_by_weight(tmp_path: Path) -> None:
    sources = [
        Source("a", shard_of(tmp_path, [20] * 50, key="a"), 3.0),
        Source("b", shard_of(tmp_path, [70] * 90, key="b"), 1.0),
    ]
    mix = DataMix(sources, seed=1, batch_tokens=200, max_length=100, learn_all=False)
    sizes = Counter(len(example.ids) for example in drawn(mix, 400))
    assert abs(20 * sizes[20] - 0.75 * 400 * 200) <= 20
    assert abs(70 * sizes[70] - 0.25 * 400 * 200) <= 70


def test_epochs_come_in_other_orders_and_seeds_differ(tmp_path: Path) -> None:
    sources = [Source("s", shard_of(tmp_path, [10] * 50))]
    mix, other = (
        DataMix(sources, seed=seed, batch_tokens=500, max_length=10, learn_all=False)
        for seed in (1, 2)
    )
    orders = [[e.ids[0] for e in mix.batch(step)] for step in (0, 1, 0)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(1, 51))
    assert orders[0] != orders[1]
    assert orders[0] == orders[2]
    assert [e.ids[0] for e in other.batch(0)] != orders[0]


def test_batches_that_could_be_empty_are_refused(tmp_path: Path) -> None:
    sources = [Source(name, shard_of(tmp_path, [50] * 9, key=name)) for name in "ab"]
    with pytest.raises(RecipeError, match=r"batch_tokens is 99, too few .* give at least 100"):
        DataMix(sources, seed=1, batch_tokens=99, max_length=50, learn_all=False)
    mix = DataMix(sources, seed=1, batch_tokens=100, max_length=50, learn_all=False)
    assert all(mix.batch(step) for step in range(100))


def test_what_is_held_out_is_never_learnt(tmp_path: Path) -> None:
    shard = shard_of(tmp_path, [10] * 90)
    mixes = [
        DataMix(
            [Source("s", shard, part=part)], seed=1, batch_tokens=100, max_length=10, learn_all=True
        )
        for part in ("train", "validation", "all")
    ]
    learnt, held, every = ({e.ids[0] for e in drawn(mix, 9)} for mix in mixes)
    assert len(held) == 4
    assert not learnt & held
    assert learnt | held == every


def test_no_token_sees_another_document(writer: TraceWriter, tmp_path: Path) -> None:
    data = stage_data(recipe_with({"task": "sums"}), writer, tmp_path)
    mix, _ = data.mix(only_stage(data.recipe))
    examples = mix.batch(0)
    packed = Batch.pack(examples)
    assert packed.sequence_T.tolist() == [n for n, e in enumerate(examples) for _ in e.ids]
    assert all(example.ids[0] == writer.tokenizer.bos_id for example in examples)
    assert all(example.ids[-1] == writer.turn_end for example in examples)
    assert all(example.ids.count(writer.turn_end) == 1 for example in examples)


def test_pretraining_learns_all_and_sft_what_the_assistant_says(
    writer: TraceWriter, tmp_path: Path
) -> None:
    for kind in ("pretrain", "sft"):
        data = stage_data(recipe_with({"task": "sums"}, kind=kind), writer, tmp_path)
        mix, _ = data.mix(only_stage(data.recipe))
        for example in mix.batch(0):
            opened = example.ids.index(writer.tokenizer.special_ids["<think>"]) + 2
            first = 1 if kind == "pretrain" else opened
            assert example.learn == [False] * first + [True] * (len(example.ids) - first)


def test_validation_problems_are_of_their_own_split(writer: TraceWriter, tmp_path: Path) -> None:
    data = stage_data(recipe_with({"task": "sums"}, validate_every=4), writer, tmp_path)
    stage = only_stage(data.recipe)
    for mix, split in ((data.mix(stage)[0], "train"), (data.held_out(stage), "validation")):
        for example in drawn(mix, 4):
            text = writer.tokenizer.decode(example.ids, skip_special=True)
            assert split_of(text.partition("\n")[0]) == split


def test_every_kind_of_file_is_learnt_from(writer: TraceWriter, tmp_path: Path) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    (tmp_path / "a.txt").write_text("one two three\n" * 60)
    parquet.write_table(arrow.table({"body": ["four five six", None] * 20}), tmp_path / "b.parquet")
    kept = {"question": "1 + 1?", "thinking": "1+1=2", "answer": "2"}
    (tmp_path / "kept.jsonl").write_text((json.dumps(kept) + "\n") * 5)
    recipe = recipe_with(
        {"text": [str(tmp_path / "a.txt")]},
        {"parquet": [str(tmp_path / "b.parquet")], "column": "body"},
        {"chat": [str(chat_file(tmp_path, 20))]},
        {"task": "sums", "weight": 2.0},
        kind="sft",
    )
    # A stage can only name one that is there; what it kept is handed in.
    stage = only_stage(recipe)
    source = stage.data[0].model_copy(update={"text": (), "stage": "reject"})
    stage = stage.model_copy(update={"data": (*stage.data, source)})
    data = stage_data(recipe, writer, tmp_path, kept={"reject": tmp_path / "kept.jsonl"})
    mix, steps = data.mix(stage)
    assert steps == 8
    text = " ".join(writer.tokenizer.decode(e.ids, skip_special=True) for e in drawn(mix, 8))
    for expected in ("one two three", "four five six", "19 + 1?", "What is", "1+1=2"):
        assert expected in text
    reports = {report.name: report for report in mix.reports}
    assert reports["b.parquet"].counts == {"rows without text": 20}
    assert reports["a.txt"].cut == 1
    assert reports["task sums"].share == pytest.approx(1 / 3)


def test_sampled_ids_are_learnt_as_sampled_unless_another_vocabulary_made_them(
    writer: TraceWriter, tmp_path: Path
) -> None:
    # The thinking letter by letter, and no newline after it: nobody would encode it so.
    ids = [token for letter in "one" for token in writer.tokenizer.encode(letter)]
    ids += writer.answer("", "19")
    kept = {"question": "12 + 7?", "thinking": "one", "answer": "19"}
    lines = [kept | {"ids": ids}, kept | {"ids": [3, 4, 5]}, kept]
    (tmp_path / "kept.jsonl").write_text("\n".join(map(json.dumps, lines)))
    recipe = recipe_with({"task": "sums"}, kind="sft", batch_tokens=128)
    stage = only_stage(recipe)
    source = stage.data[0].model_copy(update={"task": None, "stage": "reject"})
    stage = stage.model_copy(update={"data": (source,)})
    data = stage_data(recipe, writer, tmp_path, kept={"reject": tmp_path / "kept.jsonl"})
    mix, _ = data.mix(stage)
    prompt = writer.prompt("12 + 7?", thinking=True)
    said = Counter(tuple(e.ids[len(prompt) :]) for e in drawn(mix, 3)[:3])
    assert mix.reports[0].counts == {"answers encoded anew": 1}
    assert tuple(ids) in said
    assert tuple(writer.answer("one", "19")) in said


def test_epochs_become_steps(writer: TraceWriter, tmp_path: Path) -> None:
    chat = {"chat": [str(chat_file(tmp_path, 200))]}
    for sources, factor in (([chat], 1), ([chat, {"task": "sums", "weight": 3.0}], 4)):
        data = stage_data(recipe_with(*sources, kind="sft", epochs=3), writer, tmp_path)
        mix, steps = data.mix(only_stage(data.recipe))
        assert (steps - 1) * 512 < 3 * factor * mix.reports[0].tokens <= steps * 512
    endless = recipe_with({"task": "sums"}, epochs=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mull.train.data.stage.MOST_TASK_TOKENS", 5000)
        with pytest.raises(RecipeError, match="task that never ends; give steps"):
            stage_data(endless, writer, tmp_path).mix(only_stage(endless))
        data = stage_data(endless, writer, tmp_path, most=20)
        mix, steps = data.mix(only_stage(endless))
    assert mix.reports[0].documents == 20
    assert (steps - 1) * 512 < 3 * mix.reports[0].tokens <= steps * 512


def test_a_source_that_is_not_there_is_named(writer: TraceWriter, tmp_path: Path) -> None:
    recipe = recipe_with({"task": "sums"}, kind="sft")
    stage = only_stage(recipe)
    data = stage_data(recipe, writer, tmp_path)
    with pytest.raises(RecipeError, match="stage learn: there is no data"):
        data.mix(stage.model_copy(update={"data": ()}))
    source = stage.data[0].model_copy(update={"task": None, "stage": "rl"})
    with pytest.raises(RecipeError, match="rl, which keeps no answers; name a reject stage"):
        data.mix(stage.model_copy(update={"data": (source,)}))


def test_a_bad_line_of_a_source_is_named_and_leaves_no_shard(
    writer: TraceWriter, tmp_path: Path
) -> None:
    path = chat_file(tmp_path, 3)
    path.write_text(path.read_text() + '\n{"messages": [{"role": "user", "content": "x"}]}')
    data = stage_data(recipe_with({"chat": [str(path)]}, kind="sft"), writer, tmp_path)
    with pytest.raises(RecipeError, match=r"chat\.jsonl:4: there is no assistant message"):
        data.mix(only_stage(data.recipe))
    assert not list((tmp_path / "shards").iterdir())


def test_shards_are_made_anew_when_their_source_changes(
    writer: TraceWriter, tmp_path: Path
) -> None:
    path = chat_file(tmp_path, 30)
    recipe = recipe_with({"chat": [str(path)]}, {"task": "sums"}, kind="sft")
    data = stage_data(recipe, writer, tmp_path)
    stage = only_stage(recipe)

    def made() -> set[tuple[str, int, int]]:
        data.mix(stage)
        files = [(path.name, path.stat()) for path in (tmp_path / "shards").iterdir()]
        return {(name, stat.st_ino, stat.st_mtime_ns) for name, stat in files}

    first = made()
    assert len(first) == 2
    assert made() == first
    chat_file(tmp_path, 31)
    then = made()
    assert then > first
    assert len(then) == 3


def test_batches_are_the_same_in_fresh_processes_and_from_any_thread(
    writer: TraceWriter, tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path; from test_train_data_mix import *;"
        "print(digest_of(Path(sys.argv[1]), [7, 0, 3]))"
    )
    tokenizer_folder(tmp_path / "tokenizer")
    told = []
    for number in range(2):
        # The second makes its shard anew.
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "tokenizer").symlink_to(tmp_path / "tokenizer")
        run = subprocess.run(
            [sys.executable, "-c", code, folder],
            cwd=Path(__file__).parent, capture_output=True, check=True, text=True,
        )  # fmt: skip
        told.append(run.stdout.strip())
    assert told == [digest_of(tmp_path, [7, 0, 3])] * 2
    data = stage_data(recipe_with({"task": "sums"}), writer, tmp_path)
    mix, _ = data.mix(only_stage(data.recipe))
    alone = [mix.batch(step) for step in range(8)]
    found: dict[int, list[Example]] = {}
    threads = [
        threading.Thread(target=lambda s=step: found.update({s: mix.batch(s)})) for step in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[step] for step in range(8)] == alone


def digest_of(folder: Path, steps: list[int]) -> str:
    data = stage_data(recipe_with({"task": "sums"}), writer_of(folder / "tokenizer"), folder)
    mix, _ = data.mix(only_stage(data.recipe))
    told = repr([(e.ids, e.learn) for step in steps for e in mix.batch(step)])
    return hashlib.sha256(told.encode()).hexdigest()


def test_a_tokenizer_is_made_from_every_source_alike(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("word " * 5000)
    recipe = recipe_with({"text": [str(tmp_path / "a.txt")]}, {"task": "sums"}, {"task": "sums"})
    texts = list(sample_texts(recipe, {"sums": Sums()}, most=2000))
    words = sum(len(text) for text in texts if text.startswith("word"))
    assert 900 <= words <= 1100
    assert 900 <= sum(map(len, texts)) - words <= 1100
