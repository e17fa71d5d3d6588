import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_eval.config import CorpusConfig, EntityDials, ModelSpec, StudyConfig, TrainConfig
from engram_eval.config_json import from_dict, to_dict
from engram_eval.errors import UserError
from engram_eval.overrides import override
from engram_eval.scales import SCALES
from engram_eval.studies.registry import STUDIES, find_study

STUDY = StudyConfig("s", "smoke", (ModelSpec("moe", {"hidden_size": 8}, seeds=(0, 1)),))


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("scale", SCALES)
def test_every_shipped_study_survives_json(name: str, scale: str) -> None:
    study = find_study(name, scale)
    assert from_dict(StudyConfig, to_dict(study)) == study


@given(
    st.builds(
        TrainConfig,
        tokens=st.integers(1, 10**9),
        lr=st.floats(1e-6, 1),
        checkpoints=st.lists(st.floats(0.01, 1.0), max_size=4).map(tuple),
        autocast_bf16=st.booleans(),
    )
)
def test_decoding_inverts_encoding(config: TrainConfig) -> None:
    assert from_dict(TrainConfig, to_dict(config)) == config


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"vocab_sise": 1}, "unknown key 'vocab_sise' (did you mean 'vocab_size'?)"),
        ({"entities": {"n_entity": 1}}, "unknown key 'entities.n_entity'"),
        ({"vocab_size": "many"}, "vocab_size: expected int, got 'many'"),
        ({"vocab_size": True}, "vocab_size: expected int, got True"),
        ({"paths": [1]}, "paths[0]: expected str, got 1"),
        ({"mix": 3}, "mix: expected a table of keys, got 3"),
    ],
)
def test_a_bad_key_or_value_is_named(data: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        from_dict(CorpusConfig, data)
    assert message in str(error.value)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(UserError, match="missing scale"):
        from_dict(StudyConfig, {"name": "x", "models": []})


def test_whole_numbers_serve_as_floats() -> None:
    assert from_dict(TrainConfig, {"lr": 1}).lr == 1.0


def test_overrides_reach_nested_keys_and_named_models() -> None:
    changed = override(
        STUDY, ["train.tokens=64", "models.moe.seeds=[3]", "corpus.entities.n_entities=7"]
    )
    assert changed.train.tokens == 64
    assert changed.models[0].seeds == (3,)
    assert changed.corpus.entities == dataclasses.replace(EntityDials(), n_entities=7)


def test_an_override_may_be_bare_text() -> None:
    assert override(STUDY, ["question=why not"]).question == "why not"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.tokens", "expected key=value"),
        ("train.token=1", "unknown key 'train.token' (did you mean 'tokens'?)"),
        ("trian.tokens=1", "unknown key 'trian' (did you mean 'train'?)"),
        ("models.moo.seeds=[1]", "no element 'moo' (did you mean 'moe'?)"),
        ("models.moe=1", "name a key of 'moe'"),
        ("name.x=1", "name has no keys"),
    ],
)
def test_a_bad_override_is_explained(assignment: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        override(STUDY, [assignment])
    assert message in str(error.value)


def test_a_scale_names_the_main_study() -> None:
    assert find_study("quick") == find_study("brief", "quick")


def test_study_files(tmp_path) -> None:
    import json

    path = tmp_path / "mine.json"
    path.write_text(json.dumps(to_dict(STUDY)))
    assert find_study(str(path)) == STUDY
    toml = tmp_path / "mine.toml"
    toml.write_text(
        'name = "s"\nscale = "smoke"\n[[models]]\nname = "moe"\n'
        "seeds = [0, 1]\narchitecture = {hidden_size = 8}\n"
    )
    assert find_study(str(toml)) == STUDY
    (tmp_path / "study.json").write_text(path.read_text())
    assert find_study(str(tmp_path), n_seeds=1).models[0].seeds == (0,)
    assert find_study(str(path), corpus=["a.txt"]).corpus.paths == ("a.txt",)


@pytest.mark.parametrize(
    ("name", "scale", "message"),
    [
        ("mian", None, "unknown study 'mian' (did you mean 'main'?)"),
        ("main", "quik", "unknown scale 'quik' (did you mean 'quick'?)"),
        ("quick", "smoke", "contradicts"),
        ("nowhere.json", None, "no such file"),
    ],
)
def test_an_unknown_study_is_explained(name: str, scale: str | None, message: str) -> None:
    with pytest.raises(UserError) as error:
        find_study(name, scale)
    assert message in str(error.value)


def test_a_broken_study_file_is_explained(tmp_path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("name = ")
    with pytest.raises(UserError, match=r"mine\.toml"):
        find_study(str(path))
    with pytest.raises(UserError, match="at least 1"):
        find_study("main", n_seeds=0)


def test_some_arms_of_a_study() -> None:
    study = find_study("memory-systems", "smoke", arms=["engram", "moe"])
    assert [model.name for model in study.models] == ["moe", "engram"]
    assert {text.split("+")[0] for text in study.baselines} == {"ngram", "cache", "moe", "engram"}
    with pytest.raises(UserError, match=r"unknown model 'engrams'.*engram"):
        find_study("main", arms=["moe", "engrams"])
    with pytest.raises(UserError, match="engram is matched to moe in cost; add moe"):
        find_study("main", arms=["engram"])
    with pytest.raises(UserError, match="study 'offload' has no models"):
        find_study("offload", arms=["moe"])
    with pytest.raises(UserError, match="leave --corpus out"):
        people = ["moe_people", "engram_people"]
        find_study("memory-systems", arms=people, corpus=["mine.txt"])


def test_a_file_without_a_scale_takes_the_one_that_is_given(tmp_path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\nmodels = []\ntrain.lr = 0.1\ncorpus.entities.n_entities = 7\n')
    with pytest.raises(
        UserError, match=r"mine\.toml: missing scale: --scale \(smoke, tiny, .*label"
    ):
        find_study(str(path))
    study, smoke = find_study(str(path), "smoke"), SCALES["smoke"]
    assert study.scale == "smoke"
    assert study.train == dataclasses.replace(smoke.train, lr=0.1)
    entities = dataclasses.replace(smoke.corpus.entities, n_entities=7)
    assert study.corpus == dataclasses.replace(smoke.corpus, entities=entities)
    assert (study.evaluate, study.probe) == (smoke.evaluate, smoke.probe)
    with pytest.raises(UserError, match=r"unknown scale 'smok' .did you mean 'smoke'"):
        find_study(str(path), "smok")


def test_a_files_scale_is_a_label_of_any_text(tmp_path) -> None:
    path = tmp_path / "mine.toml"
    for scale in ("mine", "smoke"):
        path.write_text(f'name = "mine"\nscale = "{scale}"\nmodels = []\n')
        study = find_study(str(path))
        assert (study.scale, study.train) == (scale, TrainConfig())
    assert find_study(str(path), "smoke") == study
    with pytest.raises(UserError, match="has its scale, 'smoke'; --scale quick contradicts"):
        find_study(str(path), "quick")
