"""The answer to the study's question in one sentence, from recorded losses and verdicts alone."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engram_eval.analysis.arms import at_the_edge, lookup_rates
from engram_eval.records import MetricRow
from reports.load import Model, Study, Verdict
from reports.numbers import count, fixed, listing, quoted
from reports.query import (
    asked,
    by_domain,
    domain_of,
    headline_pair,
    heldout,
    loaded,
    memories,
    ordered,
    pick,
    scored_in_training_alone,
    values,
)
from reports.sections.capacity import told as stored_told
from reports.sections.effects import sides, task_sentence, told_tasks
from reports.sections.offload import told as speed_told

NO_DIFFERENCE = "no difference"
WORDS = ("supported", NO_DIFFERENCE, "reversed")
UNDECIDED = ("inconclusive", "not tested")


@dataclass(frozen=True)
class Answer:
    """What the first screen says.

    Attributes:
        text: the sentence.
        scale: at which size that holds, and how much trust seeds allow.
        verdict: ``lower`` (the candidate's loss is: it is better), ``higher``, ``mixed`` or
            ``unknown``.
        domains: per domain the points of both models, by seed.
        decided: of a study whose claims answer its question those that are decided.
        lead: counts these claims; stands for the sentence where ``decided`` is listed below it.
    """

    text: str
    scale: str
    verdict: str
    reference: str | None = None
    candidate: str | None = None
    domains: Mapping[str, Mapping[str, Sequence[float]]] | None = None
    decided: Sequence[Verdict] = ()
    lead: str = ""


def answer(study: Study) -> Answer:
    """Say which of the two headline models predicts held-out text better, and how surely.

    Where a study varies the memory itself, no pair of models answers its question, and where its
    claims are about something else, no loss does: then its claims do.
    """
    pair = headline_pair(study)
    timed = speed_told(study)
    if timed:
        return Answer(timed, "", "unknown")
    if pair is None:
        return Answer("No answer yet: fewer than two models are recorded.", "", "unknown")
    a, b = pair
    found = _points(heldout(study), a.name, b.name)
    stored = None if found else stored_told(study, a.name, b.name)
    if stored is None and _claims_answer(study):
        scale = scale_text(study, a, b) + baseline_text(study, a)
        return _from_claims(study.verdicts or (), scale)
    if not found:
        verdict, text = stored or _from_tasks(study, a.name, b.name)
        return Answer(text, scale_text(study, a, b), verdict, a.name, b.name)
    lying = {domain: _side(points[a.name], points[b.name]) for domain, points in found.items()}
    verdict = lying.get("all") or _common(list(lying.values()))
    scale = scale_text(study, a, b) + baseline_text(study, a)
    text = _sentence(a.name, b.name, verdict, lying, _example(a.name, b.name, found))
    if loaded(study):
        # Whoever compares trained models has asked for these tasks.
        text = f"{text} {_of_tasks(study, a.name, b.name)[1]}".strip()
    return Answer(text, scale, verdict, a.name, b.name, found)


def _claims_answer(study: Study) -> bool:
    """Tell whether claims answer the question, and not the loss of two models."""
    claims = study.verdicts or ()
    of_loss = [v for v in claims if all(row.get("name") == "heldout" for row in v.rows)]
    other = len(memories(study)) != 1 or 2 * len(of_loss) < len(claims)
    return other and any(v.effect is not None for v in claims)


def _from_claims(claims: Sequence[Verdict], scale: str) -> Answer:
    """Answer by the counts of verdicts and by the claims that are decided, with their effects."""
    lead = f"Of {len(claims)} {'claim' if len(claims) == 1 else 'claims'}, {_counted(claims)}"
    decided = [v for v in claims if v.word not in UNDECIDED]
    if not decided:
        text = f"{lead} at this scale."
        return Answer(text, scale, "unknown", lead=text)
    kinds = ordered((v.word for v in decided), first=WORDS)
    parts = [
        f"{kind.capitalize()}: {'; '.join(_with_effect(v) for v in decided if v.word == kind)}."
        for kind in kinds
    ]
    text = " ".join([f"{lead} at this scale.", *parts])
    return Answer(text, scale, "unknown", decided=decided, lead=f"{lead} at this scale:")


def _counted(claims: Sequence[Verdict]) -> str:
    """Count verdicts: ``5 are supported, 1 reversed and 2 show no difference``."""
    counts = Counter(v.word for v in claims)
    same = counts.pop(NO_DIFFERENCE, 0)
    parts: list[str] = []
    for word in ordered(counts, first=(*WORDS, *UNDECIDED)):
        verb = "" if parts else "is " if counts[word] == 1 else "are "
        parts.append(f"{counts[word]} {verb}{word}")
    if same:
        parts.append(f"{same} {'shows' if same == 1 else 'show'} {NO_DIFFERENCE}")
    return listing(parts)


def _with_effect(v: Verdict) -> str:
    return f"{v.claim} ({fixed(v.effect, sign=True)} {v.unit})"


def _from_tasks(study: Study, a: str, b: str) -> tuple[str, str]:
    """Answer from the recorded task comparisons, where held-out text was not asked for."""
    if asked(study, "evaluate", "heldout", True):
        return "unknown", f"No answer yet: held-out loss of both {a} and {b} is not recorded."
    verdict, told = _of_tasks(study, a, b)
    return verdict, told or f"No answer yet: no comparison of {b} with {a} is recorded."


def _of_tasks(study: Study, a: str, b: str) -> tuple[str, str]:
    """Say how two models do beside each other on tasks; "" where nothing was compared."""
    found = told_tasks(study)
    if not found and any(c.informative is False for c in study.comparisons):
        return "mixed", f"No clear difference: no task tells {b} and {a} apart."
    ahead, behind = sides(found)
    verdict = "mixed" if (ahead > 0) == (behind > 0) else ("lower" if ahead else "higher")
    return verdict, task_sentence(found, a, b)


def _points(rows: Sequence[MetricRow], a: str, b: str) -> dict[str, dict[str, list[float]]]:
    """Return the points of both models for each domain that both have."""
    found = {}
    for domain in by_domain(domain_of(row) for row in rows):
        here = [row for row in rows if domain_of(row) == domain]
        points = {name: values(pick(here, model=name)) for name in (a, b)}
        if all(points.values()):
            found[domain] = points
    return found


def _side(a: Sequence[float], b: Sequence[float]) -> str:
    """Tell on which side of all points of ``a`` all points of ``b`` lie."""
    if max(b) < min(a):
        return "lower"
    return "higher" if min(b) > max(a) else "mixed"


def _common(sides: Sequence[str]) -> str:
    return sides[0] if len(set(sides)) == 1 else "mixed"


def _sentence(a: str, b: str, verdict: str, sides: Mapping[str, str], example: str) -> str:
    """Word the verdict; "better" means that every point is, which is no test."""
    domains = {domain: side for domain, side in sides.items() if domain != "all"}
    uniform = len(domains) > 1 and _common(list(domains.values())) == verdict
    if verdict == "mixed":
        lead = f"No clear difference: the points of {b} and {a} overlap on held-out text"
    else:
        word = {"lower": "better", "higher": "worse"}[verdict]
        scope = "In every domain" if uniform else "Overall"
        lead = f"{scope} {b} predicts held-out text {word} than {a}"
    return f"{lead}: {example}." + ("" if uniform or not domains else _by_domain(domains))


def _by_domain(sides: Mapping[str, str]) -> str:
    words = (("lower", "better in"), ("higher", "worse in"), ("mixed", "overlapping in"))
    parts = []
    for side, lead in words:
        names = [domain for domain, found in sides.items() if found == side]
        parts += [f"{lead} {listing(names)}"] if names else []
    return f" By domain: {'; '.join(parts)}."


def _example(a: str, b: str, found: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Quote the points of one domain: all text where that is recorded, else the first."""
    domain = "all" if "all" in found else next(iter(found))
    where = "all text" if domain == "all" else domain
    both = [quoted(found[domain][name]) for name in (b, a)]
    return f"{both[0]} against {both[1]} bits per byte on {where}"


def scale_text(study: Study, a: Model, b: Model) -> str:
    """Say at which scale the answer holds, how sure it is, and who has another tokenizer."""
    if loaded(study):
        told = (
            "This holds of these trained models alone: another training could come out otherwise."
        )
        return f"{told} {study.tokenizers.get('note', '')}".strip()
    parts = []
    if b.params_total:
        parts.append(f"{count(b.params_total)} parameters".replace(" M p", " million p"))
    if b.tokens:
        parts.append(f"{count(b.tokens)} training tokens".replace(" M t", " million t"))
    scored = _points(heldout(study), a.name, b.name).get("all", {})
    seeds = [len(scored.get(m.name, m.seeds)) for m in (a, b)]
    parts.append(seeds_text(seeds, quoted=not _claims_answer(study)))
    if b.tokens and not (a.tuned and b.tuned):
        parts.append(f"learning rates untuned{_of_lookups(study)}")
    elif {a.name, b.name} & set(at_the_edge(study.rows)):
        parts.append("learning rates tuned, the best ones at the edge of what was tried")
    if scored_in_training_alone(study):
        parts.append("the evaluation is missing: scored on the validation text of the training")
    scale, note = study.text("scale"), study.tokenizers.get("note", "")
    told = f"At this scale only{f' ({scale})' if scale else ''}: {'; '.join(parts)}."
    return f"{told} {note}".strip()


def _of_lookups(study: Study) -> str:
    """Say how fast token embeddings and rows learn: it can matter more than the models do."""
    rates = lookup_rates(study.config)
    if rates is None:
        return ""
    embedding, rows = f"{rates['embedding']:g}", f"{rates['rows']:g}"
    if embedding == rows:
        return f" (token embeddings and memory rows at {rows} times the backbone's)"
    return f" (token embeddings at {embedding}, memory rows at {rows} times the backbone's)"


def baseline_text(study: Study, reference: Model) -> str:
    """Say whether the reference beats the model without experts that is matched to it.

    A mixture of experts that does not beat its dense twin is no established baseline; empty
    where there is no such twin.
    """
    for twin in study.models:
        sparse = twin.params_table or twin.architecture.get("n_routed_experts")
        if twin.matched_to == reference.name and not sparse:
            points = _points(heldout(study), twin.name, reference.name)
            if "all" not in points:
                return ""
            example = _example(twin.name, reference.name, {"all": points["all"]})
            if _side(points["all"][twin.name], points["all"][reference.name]) == "lower":
                return f" {reference.name} beats its twin {twin.name}: {example}."
            return (
                f" No established baseline: {reference.name} does not beat its twin {twin.name}: "
                f"{example}."
            )
    return ""


def seeds_text(seeds: Sequence[int], quoted: bool) -> str:
    """Say how many seeds each model has, whether that bears an interval, and what is quoted."""
    counts = sorted(set(seeds))
    number = listing([str(c) for c in counts], "or")
    noun = "seed" if counts == [1] else "seeds"
    few = " (every point is shown; no interval over seeds)"
    middle = " (the middle one is quoted, and the range)" if quoted else ""
    caution = few if counts[0] < 3 else middle
    return f"{number} {noun} per model{caution}"
