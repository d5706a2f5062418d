from __future__ import annotations

import pickle

import pytest

from vadtune.config.domains import DOMAINS, Condition, parse_domain

EXAMPLES = {
    "choice": [1, "two", 3.5],
    "grid": [10, 20],
    "int": [0, 3],
    "logint": [1, 64],
    "uniform": [-6, -0.6],
    "loguniform": ["1e-3", 5e-3],  # YAML 1.1 reads 1e-3 as a string
    "quniform": [0.1, 0.5, 0.1],
}


@pytest.mark.parametrize("kind", DOMAINS)
def test_every_kind_knows_its_own_values(kind: str) -> None:
    domain = parse_domain({kind: EXAMPLES[kind], "when": {"layers": ">0"}}, "model")
    assert domain.when == (Condition("model.layers", ">", 0),)
    assert all(domain.contains(value) for value in domain.probes())
    for value in domain.finite_values() or []:
        assert domain.contains(value)
    assert not domain.contains(1e9)
    assert not domain.contains("none of these")
    assert pickle.loads(pickle.dumps(domain)) == domain


def test_finite_values_are_all_values_in_order() -> None:
    assert parse_domain({"int": [0, 3]}, "model").finite_values() == [0, 1, 2, 3]
    assert parse_domain({"quniform": [0.1, 0.5, 0.1]}, "model").finite_values() == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert parse_domain({"quniform": [8, 20, 4]}, "model").finite_values() == [8, 12, 16, 20]
    assert parse_domain({"uniform": [0, 1]}, "model").finite_values() is None


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"choice": []}, "choice needs at least one value, got an empty list"),
        ({"choice": 3}, "choice takes a list, got 3"),
        ({"choice": [1, 1]}, "lists each value once"),
        ({"choice": [[1]]}, "takes plain values"),
        ({"uniform": [1, 0]}, r"uniform needs low < high, got \[1, 0\]"),
        ({"uniform": [1, 1]}, r"needs low < high, got \[1, 1\]"),
        ({"uniform": [1]}, r"uniform takes \[low, high\], got \[1\]"),
        ({"uniform": ["a", "b"]}, r"uniform takes \[low, high\], got \['a', 'b'\]"),
        ({"uniform": [0, float("inf")]}, "finite numbers"),
        ({"loguniform": [0, 1]}, r"loguniform needs low > 0, for logarithms, got \[0, 1\]"),
        ({"logint": [0, 8]}, "needs low >= 1"),
        ({"int": [0.5, 3]}, "needs whole numbers"),
        ({"quniform": [0, 1, 0]}, "needs a step above 0"),
        ({"quniform": [0, 1, 2]}, "at most high - low, got 2"),
        ({"int": [0, 3], "uniform": [0, 1]}, "a domain has one kind"),
        ({"when": {"layers": 1}}, "a domain has one kind"),
        ({"int": [0, 3], "if": {}}, "a domain has one kind .* got int, if"),
        ({"int": [0, 3], "when": ">0"}, "when takes a mapping"),
        ({"int": [0, 3], "when": {"layers": ">"}}, "a comparison needs a number, such as '>0', got '>'"),
        ({"int": [0, 3], "when": {"layers": ">many"}}, "a comparison needs a number"),
    ],
)
def test_each_broken_rule_is_named_with_the_value_received(node: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_domain(node, "model")


@pytest.mark.parametrize(
    ("test", "true_for", "false_for"),
    [
        (">0", 1, 0),
        (">=2", 2, 1),
        ("<3", 2, 3),
        ("<= 3", 3, 4),
        ("==2", 2, 3),
        ("!=relu", "tanh", "relu"),
        ("fixed", "fixed", "learned"),
        ([1, 2], 2, 3),
        (0, 0, 1),
        (">0", 1, "a text"),
    ],
)
def test_conditions_hold_where_they_say(test: object, true_for: object, false_for: object) -> None:
    condition = Condition.parse("model.x", test)
    assert condition.holds({"model.x": true_for})
    assert not condition.holds({"model.x": false_for})
    assert not condition.holds({})
